//! Reading YAML with positions: an error says the line and column it is about.

use std::path::Path;

use serde::de::DeserializeOwned;

/// A text that is not the YAML or JSON it should be.
#[derive(Debug)]
pub struct ParseError {
    message: String,
    /// Line and column, counted from 1.
    position: Option<(u64, u64)>,
}

impl ParseError {
    /// `FILE:LINE:COLUMN: what is wrong`.
    pub fn at(&self, path: &Path) -> String {
        match self.position {
            Some((line, column)) => format!("{}:{line}:{column}: {}", path.display(), self.message),
            None => format!("{}: {}", path.display(), self.message),
        }
    }
}

/// Reads one YAML document.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ParseError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let position = error
            .location()
            .map(|location| (location.line(), location.column()))
            .filter(|(line, _)| *line > 0);
        let message = error.to_string();
        // The text repeats the position, and may draw the place over several lines.
        let message = message.lines().next().unwrap_or_default();
        let message =
            message.split(" at line ").next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        ParseError { message, position }
    })
}

/// Reads one JSON document.
pub fn parse_json<T: DeserializeOwned>(text: &str) -> Result<T, ParseError> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        let position = (error.line() > 0).then(|| (error.line() as u64, error.column() as u64));
        ParseError { message, position }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn errors_name_line_and_column() {
        let error = parse::<BTreeMap<String, u32>>("a: 1\nb: two\n").unwrap_err().at(Path::new("x.yaml"));
        assert!(error.starts_with("x.yaml:2:"), "{error}");
        let error = parse_json::<BTreeMap<String, u32>>("{\"a\": 1,\n\"b\": \"two\"}")
            .unwrap_err()
            .at(Path::new("x.json"));
        assert!(error.starts_with("x.json:2:"), "{error}");
    }

    #[test]
    fn numbers_are_texts_where_texts_are_wanted() {
        let map: BTreeMap<String, String> = parse("port: 8080\nversion: 0.0.1\nyes: true\n").unwrap();
        assert_eq!(map["port"], "8080");
    }
}
