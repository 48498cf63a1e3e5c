//! What scripts answer.

use crate::engine::{Broken, Row};

/// A message's fields, in the order of `lua/shared.lua`; absent ones as none.
pub(super) type Fields = Vec<Option<Vec<u8>>>;

/// Fields of a message, without what it carries.
const FIELDS: usize = 21;

/// A message as it is stored.
pub(super) fn row(mut fields: Fields) -> Result<Row, Broken> {
    if fields.len() != FIELDS {
        return Err(Broken(format!("a message of {} fields", fields.len())));
    }
    let mut fields = fields.drain(..);
    let mut next = || fields.next().flatten();
    Ok(Row {
        seq: number(next())?,
        id: text(next())?,
        function_id: text(next())?,
        app_id: text(next())?,
        priority: number(next())?,
        state: number(next())?,
        due_at: number(next())?,
        deadline_at: next().map(|field| number(Some(field))).transpose()?,
        created_at: number(next())?,
        started_at: next().map(|field| number(Some(field))).transpose()?,
        leased_until: next().map(|field| number(Some(field))).transpose()?,
        ended_at: next().map(|field| number(Some(field))).transpose()?,
        lease: number(next())?,
        attempts: number(next())?,
        attempts_max: number(next())?,
        pause_min: number(next())?,
        pause_max: number(next())?,
        jitter: number(next())?,
        worker: next().map(|field| text(Some(field))).transpose()?,
        last_error: next().map(|field| text(Some(field))).transpose()?,
        payload_bytes: number(next())?,
    })
}

/// Messages as they are stored.
pub(super) fn rows(replies: Vec<Fields>) -> Result<Vec<Row>, Broken> {
    replies.into_iter().map(row).collect()
}

/// A message with its envelope and payload, which are its last field: payload, then envelope.
pub(super) fn with_body(mut fields: Fields) -> Result<(Row, String, Vec<u8>), Broken> {
    let body = fields.pop().flatten();
    let row = row(fields)?;
    let mut payload = body.ok_or_else(|| Broken(format!("message {} has lost what it carries", row.id)))?;
    let payload_bytes = row.payload_bytes as usize;
    if payload.len() < payload_bytes {
        return Err(Broken(format!("message {} has lost a part of what it carries", row.id)));
    }
    let envelope = text(Some(payload.split_off(payload_bytes)))?;
    Ok((row, envelope, payload))
}

/// A number, or none where a script found none.
pub(super) fn optional_number(text: &str) -> Result<Option<i64>, Broken> {
    if text.is_empty() { Ok(None) } else { number(Some(text.as_bytes().to_vec())).map(Some) }
}

fn number(field: Option<Vec<u8>>) -> Result<i64, Broken> {
    let text = text(field)?;
    text.parse().map_err(|_| Broken(format!("{text:?} is no number")))
}

fn text(field: Option<Vec<u8>>) -> Result<String, Broken> {
    let field = field.ok_or_else(|| Broken("a field is missing".to_owned()))?;
    String::from_utf8(field).map_err(|error| Broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let texts = [
            "7", "ID", "FN", "APP", "2", "0", "1000", "", "900", "", "", "", "3", "2", "5", "10", "20", "30",
            "", "", "4",
        ];
        texts.map(|text| (!text.is_empty()).then(|| text.as_bytes().to_vec())).to_vec()
    }

    #[test]
    fn a_row_is_its_fields_in_order() {
        let row = row(fields()).unwrap();
        assert_eq!((row.seq, row.priority, row.due_at, row.deadline_at), (7, 2, 1000, None));
        assert_eq!((row.created_at, row.lease, row.attempts, row.attempts_max), (900, 3, 2, 5));
        assert_eq!((row.pause_min, row.pause_max, row.jitter, row.payload_bytes), (10, 20, 30, 4));
        assert_eq!((row.worker, row.last_error), (None, None));
    }

    #[test]
    fn a_body_is_payload_and_envelope() {
        let mut with = fields();
        with.push(Some(b"\0\xff\x01\x02{}".to_vec()));
        let (_, envelope, payload) = with_body(with).unwrap();
        assert_eq!((envelope.as_str(), payload), ("{}", vec![0, 255, 1, 2]));
        for lost in [None, Some(b"123".to_vec())] {
            let mut with = fields();
            with.push(lost);
            assert!(with_body(with).unwrap_err().to_string().contains("message ID has lost"));
        }
    }

    #[test]
    fn what_is_no_message_is_told() {
        assert!(row(fields()[1..].to_vec()).is_err());
        let mut wrong = fields();
        wrong[0] = Some(b"x".to_vec());
        assert_eq!(row(wrong).unwrap_err().to_string(), "what is stored makes no sense: \"x\" is no number");
    }
}
