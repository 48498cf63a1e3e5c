//! The media type of an answer that names none, told from its first bytes.
//!
//! Fn leaves this to Go's `net/http` (`spec/api-v2.md`, part 4), which follows WHATWG MIME Sniffing, so the order and
//! the names here are Go's `DetectContentType`'s. Pure: no I/O, no allocation; O(signatures) for what is binary, one
//! pass over at most [`SNIFFED_BYTES_MAX`] for text.

/// As many bytes are looked at ("resource header", WHATWG MIME Sniffing, 5.2, in Go's size).
const SNIFFED_BYTES_MAX: usize = 512;

const HTML: &[u8] = b"text/html; charset=utf-8";
const XML: &[u8] = b"text/xml; charset=utf-8";
const TEXT: &[u8] = b"text/plain; charset=utf-8";
const UNKNOWN: &[u8] = b"application/octet-stream";

/// What HTML begins with, without case (WHATWG MIME Sniffing, 7.1).
const TAGS: [&[u8]; 17] = [
    b"<!DOCTYPE HTML",
    b"<HTML",
    b"<HEAD",
    b"<SCRIPT",
    b"<IFRAME",
    b"<H1",
    b"<DIV",
    b"<FONT",
    b"<TABLE",
    b"<A",
    b"<STYLE",
    b"<TITLE",
    b"<B",
    b"<BODY",
    b"<BR",
    b"<P",
    b"<!--",
];

/// Bytes that must stand at offsets, and what they mean. An empty part asks only that the data reaches so far.
type Signature = (&'static [(usize, &'static [u8])], &'static [u8]);

/// Documents, byte order marks, images, audio and video (WHATWG MIME Sniffing, 6.1, 6.2, 7.1).
const MEDIA: &[Signature] = &[
    (&[(0, b"%PDF-")], b"application/pdf"),
    (&[(0, b"%!PS-Adobe-")], b"application/postscript"),
    (&[(0, b"\xfe\xff"), (4, b"")], b"text/plain; charset=utf-16be"),
    (&[(0, b"\xff\xfe"), (4, b"")], b"text/plain; charset=utf-16le"),
    (&[(0, b"\xef\xbb\xbf"), (4, b"")], TEXT),
    (&[(0, b"\x00\x00\x01\x00")], b"image/x-icon"),
    (&[(0, b"\x00\x00\x02\x00")], b"image/x-icon"),
    (&[(0, b"BM")], b"image/bmp"),
    (&[(0, b"GIF87a")], b"image/gif"),
    (&[(0, b"GIF89a")], b"image/gif"),
    (&[(0, b"RIFF"), (8, b"WEBPVP")], b"image/webp"),
    (&[(0, b"\x89PNG\r\n\x1a\n")], b"image/png"),
    (&[(0, b"\xff\xd8\xff")], b"image/jpeg"),
    (&[(0, b"FORM"), (8, b"AIFF")], b"audio/aiff"),
    (&[(0, b"ID3")], b"audio/mpeg"),
    (&[(0, b"OggS\x00")], b"application/ogg"),
    (&[(0, b"MThd\x00\x00\x00\x06")], b"audio/midi"),
    (&[(0, b"RIFF"), (8, b"AVI ")], b"video/avi"),
    (&[(0, b"RIFF"), (8, b"WAVE")], b"audio/wave"),
];

/// Video, fonts, archives and code that Go looks for after MP4 (WHATWG MIME Sniffing, 6.2 to 6.4).
const CONTAINERS: &[Signature] = &[
    (&[(0, b"\x1a\x45\xdf\xa3")], b"video/webm"),
    (&[(34, b"LP")], b"application/vnd.ms-fontobject"),
    (&[(0, b"\x00\x01\x00\x00")], b"font/ttf"),
    (&[(0, b"OTTO")], b"font/otf"),
    (&[(0, b"ttcf")], b"font/collection"),
    (&[(0, b"wOFF")], b"font/woff"),
    (&[(0, b"wOF2")], b"font/woff2"),
    (&[(0, b"\x1f\x8b\x08")], b"application/x-gzip"),
    (&[(0, b"PK\x03\x04")], b"application/zip"),
    (&[(0, b"Rar!\x1a\x07\x00")], b"application/x-rar-compressed"),
    (&[(0, b"Rar!\x1a\x07\x01\x00")], b"application/x-rar-compressed"),
    (&[(0, b"\x00asm")], b"application/wasm"),
];

/// The type of a body that begins with `data`; never empty.
pub(super) fn content_type(data: &[u8]) -> &'static [u8] {
    let data = &data[..data.len().min(SNIFFED_BYTES_MAX)];
    let text_at = data.iter().position(|&byte| !is_space(byte)).unwrap_or(data.len());
    let trimmed = &data[text_at..];
    if TAGS.iter().any(|tag| begins_with_tag(trimmed, tag)) {
        return HTML;
    }
    if trimmed.starts_with(b"<?xml") {
        return XML;
    }
    if let Some(found) = find(MEDIA, data) {
        return found;
    }
    if is_mp4(data) {
        return b"video/mp4";
    }
    if let Some(found) = find(CONTAINERS, data) {
        return found;
    }
    if data.iter().copied().any(is_binary) { UNKNOWN } else { TEXT }
}

fn find(signatures: &[Signature], data: &[u8]) -> Option<&'static [u8]> {
    let stands = |&(at, bytes): &(usize, &[u8])| data.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    signatures.iter().find(|(parts, _)| parts.iter().all(stands)).map(|&(_, found)| found)
}

/// True if a tag stands first, ended by a space or `>`.
fn begins_with_tag(data: &[u8], tag: &[u8]) -> bool {
    data.split_at_checked(tag.len()).is_some_and(|(name, rest)| {
        name.eq_ignore_ascii_case(tag) && matches!(rest.first(), Some(b' ' | b'>'))
    })
}

/// True if an `ftyp` box stands first that names an `mp4` brand (WHATWG MIME Sniffing, 6.2.1).
fn is_mp4(data: &[u8]) -> bool {
    const MINOR_VERSION_AT: usize = 12;
    let Some((size, rest)) = data.split_first_chunk() else { return false };
    let box_bytes = u32::from_be_bytes(*size) as usize;
    if data.len() < 12 || data.len() < box_bytes || !box_bytes.is_multiple_of(4) || !rest.starts_with(b"ftyp")
    {
        return false;
    }
    (8..box_bytes).step_by(4).any(|at| at != MINOR_VERSION_AT && data[at..].starts_with(b"mp4"))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\x0c' | b'\r' | b' ')
}

/// True for bytes that no text holds (WHATWG MIME Sniffing, 3, "binary data byte").
fn is_binary(byte: u8) -> bool {
    matches!(byte, 0..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(data: &[u8], expected: &str) {
        let found = std::str::from_utf8(content_type(data)).unwrap();
        assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(data));
    }

    /// The tables of WHATWG MIME Sniffing, with the bytes that its masks leave open filled in.
    #[test]
    fn the_tables_of_the_standard_are_known() {
        let cases: &[(&[u8], &str)] = &[
            (b"%PDF-1.7\n%\xe2\xe3", "application/pdf"),
            (b"%!PS-Adobe-3.0", "application/postscript"),
            (b"\xfe\xff\x00h", "text/plain; charset=utf-16be"),
            (b"\xff\xfeh\x00", "text/plain; charset=utf-16le"),
            (b"\xef\xbb\xbfhi", "text/plain; charset=utf-8"),
            (b"\xef\xbb\xbf\x00", "text/plain; charset=utf-8"),
            (b"\x00\x00\x01\x00\x01", "image/x-icon"),
            (b"\x00\x00\x02\x00\x01", "image/x-icon"),
            (b"BM\x36\x00", "image/bmp"),
            (b"GIF87a\x01", "image/gif"),
            (b"GIF89a\x01", "image/gif"),
            (b"RIFF\x24\x00\x00\x00WEBPVP8 ", "image/webp"),
            (b"\x89PNG\x0d\x0a\x1a\x0a\x00", "image/png"),
            (b"\xff\xd8\xff\xe0\x00", "image/jpeg"),
            (b"FORM\x00\x01\x02\x03AIFFCOMM", "audio/aiff"),
            (b"ID3\x04\x00", "audio/mpeg"),
            (b"OggS\x00\x02", "application/ogg"),
            (b"MThd\x00\x00\x00\x06\x00\x01", "audio/midi"),
            (b"RIFF\x24\x00\x00\x00AVI LIST", "video/avi"),
            (b"RIFF\x24\x00\x00\x00WAVEfmt ", "audio/wave"),
            (b"\x1a\x45\xdf\xa3\x9f", "video/webm"),
            (b"\x00\x01\x00\x00\x00\x0a", "font/ttf"),
            (b"OTTO\x00\x0b", "font/otf"),
            (b"ttcf\x00\x01", "font/collection"),
            (b"wOFF\x00\x01", "font/woff"),
            (b"wOF2\x00\x01", "font/woff2"),
            (b"\x1f\x8b\x08\x00", "application/x-gzip"),
            (b"PK\x03\x04\x14", "application/zip"),
            (b"Rar!\x1a\x07\x00\xcf", "application/x-rar-compressed"),
            (b"Rar!\x1a\x07\x01\x00", "application/x-rar-compressed"),
            (b"\x00asm\x01\x00\x00\x00", "application/wasm"),
            (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00mp42isom", "video/mp4"),
            (b"\x00\x00\x00\x14ftypmp41\x00\x00\x02\x00isom", "video/mp4"),
        ];
        for (data, expected) in cases {
            check(data, expected);
        }
        let mut embedded = [0x11; 40];
        embedded[34..36].copy_from_slice(b"LP");
        check(&embedded, "application/vnd.ms-fontobject");
    }

    #[test]
    fn markup_is_known_behind_white_space_and_without_case() {
        for tag in TAGS {
            let tag = std::str::from_utf8(tag).unwrap();
            for end in [" ", ">"] {
                check(
                    format!("\t\n\x0c\r {}{end}", tag.to_lowercase()).as_bytes(),
                    "text/html; charset=utf-8",
                );
                check(format!("{tag}{end}").as_bytes(), "text/html; charset=utf-8");
            }
            check(tag.as_bytes(), "text/plain; charset=utf-8");
            check(format!("{tag}\n").as_bytes(), "text/plain; charset=utf-8");
            check(format!("x{tag}>").as_bytes(), "text/plain; charset=utf-8");
        }
        check(b"\n<?xml version=\"1.0\"?>", "text/xml; charset=utf-8");
        check(b"<?XML ", "text/plain; charset=utf-8");
    }

    #[test]
    fn what_is_no_known_format_is_text_or_bytes() {
        for text in
            ["hello", "{\"a\":1}", "na\u{ef}ve", "", " \t", "\x1b[1mbold\x1b[0m", "PK", "GIF88a", "\u{85}"]
        {
            check(text.as_bytes(), "text/plain; charset=utf-8");
        }
        check(b"\xfe\xff", "text/plain; charset=utf-8");
        for binary in [0x00, 0x08, 0x0b, 0x0e, 0x1a, 0x1c, 0x1f] {
            check(&[b'h', b'i', binary], "application/octet-stream");
        }
        for bytes in [&b" \x89PNG\x0d\x0a\x1a\x0a"[..], b"RIFF\x24\x00\x00\x00WEBPXX", b"OggS\x01"] {
            check(bytes, "application/octet-stream");
        }
    }

    #[test]
    fn a_box_that_is_cut_or_names_no_mp4_brand_is_no_mp4() {
        for data in [
            &b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00mp42"[..],
            b"\x00\x00\x00\x17ftypisom\x00\x00\x02\x00mp42isom",
            b"\x00\x00\x00\x14ftypisom\x00\x00\x02\x00isom",
            b"\x00\x00\x00\x14ftypisommp41isom",
            b"\x00\x00\x00\x14moovmp41\x00\x00\x02\x00isom",
            b"\x00\x00\x00\x00ftypmp41",
        ] {
            check(data, "application/octet-stream");
        }
    }

    #[test]
    fn only_the_first_512_bytes_count() {
        let mut data = vec![b'a'; 513];
        data[512] = 0;
        check(&data, "text/plain; charset=utf-8");
        data[511] = 0;
        check(&data, "application/octet-stream");
        let late = [vec![b' '; 508], b"<p>".to_vec()].concat();
        check(&late, "text/html; charset=utf-8");
        check(&[vec![b' '; 510], b"<p>".to_vec()].concat(), "text/plain; charset=utf-8");
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_type_that_is_a_header_value(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let found = content_type(&bytes);
            prop_assert!(!found.is_empty() && found.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' '));
        }
    }
}
