//! Image references: `[host[:port]/]path[:tag][@digest]`, by the grammar of the distribution project.
//!
//! Strict, because a reference becomes part of a path of the engine's API.

/// The registry of images that name none.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// Longest reference in bytes: 255 of name, 128 of tag, 135 of digest, separators.
const REFERENCE_BYTES_MAX: usize = 520;

/// A reference taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    /// Registry host with its port; [`DOCKER_HUB`] when the reference names none.
    pub(super) host: &'a str,
    /// Everything before tag and digest, as given.
    pub(super) repository: &'a str,
    /// Tag, or digest when there is one; `latest` when there is neither.
    pub(super) version: &'a str,
}

/// Takes `text` apart; `None` when it is not a reference.
pub(super) fn parse(text: &str) -> Option<Reference<'_>> {
    if text.len() > REFERENCE_BYTES_MAX {
        return None;
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it, a port.
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (rest, None),
    };
    let (host, path) = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
        _ => (None, repository),
    };
    let valid = host.is_none_or(is_host)
        && path.split('/').all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    valid.then_some(Reference {
        host: host.unwrap_or(DOCKER_HUB),
        repository,
        version: digest.or(tag).unwrap_or("latest"),
    })
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let joined = component
        .split(|character: char| !matches!(character, '.' | '_' | '-'))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'));
    component.bytes().next().is_some_and(alphanumeric)
        && component.bytes().next_back().is_some_and(alphanumeric)
        && component.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'))
        && joined
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && algorithm.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+._-".contains(&byte))
            && (32..=128).contains(&hex.len())
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (&str, &str, &str) {
        let reference = parse(text).unwrap_or_else(|| panic!("{text} is a reference"));
        (reference.host, reference.repository, reference.version)
    }

    #[test]
    fn references_are_taken_apart_as_docker_does() {
        assert_eq!(parts("busybox"), (DOCKER_HUB, "busybox", "latest"));
        assert_eq!(parts("fnproject/hello:0.0.3"), (DOCKER_HUB, "fnproject/hello", "0.0.3"));
        assert_eq!(parts("localhost/a"), ("localhost", "localhost/a", "latest"));
        assert_eq!(parts("127.0.0.1:5000/a/b__c"), ("127.0.0.1:5000", "127.0.0.1:5000/a/b__c", "latest"));
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text = format!("eu.gcr.io/p/x:1@{digest}");
        assert_eq!(parts(&text), ("eu.gcr.io", "eu.gcr.io/p/x", digest.as_str()));
    }

    #[test]
    fn texts_that_are_no_references_are_refused() {
        let long = "a".repeat(600);
        for text in [
            "",
            "/",
            "a//b",
            "UPPER",
            "a/../b",
            "..",
            "a/../../containers/json",
            "a?x=1",
            "a#b",
            "a b",
            "a:",
            "a:-x",
            "a@sha256:zz",
            "host:port/a",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a%2fb",
            "http://a/b",
            "ä",
            &long,
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
