//! Heads of requests and responses: parsed once, strictly, into what is forwarded.

use http::Method;

use super::headers::HeaderBlock;

/// Most header lines that any limit may allow; the parser's table lives on the stack.
const FIELDS_CAPACITY: usize = 128;

/// Bounds of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Longest head in bytes, first line included.
    pub bytes_max: usize,
    /// Longest request target in bytes.
    pub target_bytes_max: usize,
    /// Most header lines, at most 128.
    pub fields_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { bytes_max: 64 * 1024, target_bytes_max: 8 * 1024, fields_max: 100 }
    }
}

/// How the end of a body is found (RFC 9112, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// Exactly this many bytes.
    Fixed(u64),
    /// Chunks.
    Chunked,
    /// Everything until the connection closes; responses only.
    UntilClose,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The grammar or the framing is broken (400).
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The request target is too long (414).
    #[error("request target too long")]
    TargetTooLong,
    /// The head is too large or has too many lines (431).
    #[error("request header fields too large")]
    TooLarge,
    /// A transfer coding other than `chunked` (501).
    #[error("transfer coding not implemented; only chunked is")]
    UnknownTransferCoding,
    /// A version other than HTTP/1.0 and HTTP/1.1 (505).
    #[error("HTTP version not supported")]
    UnknownVersion,
}

impl HeadError {
    /// The status that the peer gets before the connection is closed.
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::TargetTooLong => 414,
            Self::TooLarge => 431,
            Self::UnknownTransferCoding => 501,
            Self::UnknownVersion => 505,
        }
    }
}

/// A request's head.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Path and query; of an absolute-form target, what follows the authority.
    pub target: String,
    /// The `Host`, or the authority of an absolute-form target. Empty only in HTTP/1.0.
    pub host: String,
    /// True for HTTP/1.1, false for HTTP/1.0.
    pub http11: bool,
    /// End-to-end header lines: without hop-by-hop ones, `Content-Length`, `Host` and `Expect`.
    pub headers: HeaderBlock,
    /// How the body ends.
    pub length: BodyLength,
    /// The client wants the connection to stay open.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// A response's head.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// End-to-end header lines: without hop-by-hop ones and `Content-Length`.
    pub headers: HeaderBlock,
    /// How the body ends.
    pub length: BodyLength,
    /// The connection may serve another request after this one.
    pub keep_alive: bool,
}

/// Finds the end of the head in `buffer`, looking only at what came since `seen` bytes.
///
/// Returns the length of the head with its empty line, or `None` if more is needed. O(new bytes).
///
/// # Errors
/// A line feed without a carriage return, or a head beyond the limit.
pub fn find_end(buffer: &[u8], seen: usize, limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
    let start = seen.saturating_sub(3);
    for at in memchr::memchr_iter(b'\n', &buffer[start..]) {
        let at = start + at;
        if at == 0 || buffer[at - 1] != b'\r' {
            return Err(HeadError::Malformed("a line ends without carriage return"));
        }
        if at >= 3 && buffer[at - 2] == b'\n' {
            return if at < limits.bytes_max { Ok(Some(at + 1)) } else { Err(beyond_limit(buffer, limits)) };
        }
    }
    if buffer.len() < limits.bytes_max { Ok(None) } else { Err(beyond_limit(buffer, limits)) }
}

/// A first line that does not end within the limit is a target that is too long.
fn beyond_limit(buffer: &[u8], limits: &HeadLimits) -> HeadError {
    match memchr::memchr(b'\n', &buffer[..limits.bytes_max]) {
        None => HeadError::TargetTooLong,
        Some(_) => HeadError::TooLarge,
    }
}

/// Parses a whole request head, as delimited by [`find_end`].
///
/// # Errors
/// Whatever RFC 9112 does not allow, and what could be read in two ways (sections 3, 5, 6.3, 11.2).
pub fn parse_request(head: &[u8], limits: &HeadLimits) -> Result<RequestHead, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_CAPACITY];
    let fields_max = limits.fields_max.min(FIELDS_CAPACITY);
    let mut parsed = httparse::Request::new(&mut fields[..fields_max]);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("the head ends early")),
        Err(error) => return Err(head_error(error)),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::Malformed("incomplete request line"));
    };
    if target.len() > limits.target_bytes_max {
        return Err(HeadError::TargetTooLong);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed("bad method"))?;
    let http11 = minor == 1;
    let scan = scan(parsed.headers, head.len(), Side::Request)?;

    let (authority, target) = split_target(target, &method)?;
    let host = match (authority, scan.host) {
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) if http11 => return Err(HeadError::Malformed("no Host header")),
        (None, None) => "",
    };
    if !is_host(host) {
        return Err(HeadError::Malformed("bad Host header"));
    }
    let length = match (scan.transfer_encoding, scan.content_length) {
        (TransferEncoding::Other, _) => return Err(HeadError::UnknownTransferCoding),
        (TransferEncoding::Chunked, Some(_)) => {
            return Err(HeadError::Malformed("both Content-Length and Transfer-Encoding"));
        }
        (TransferEncoding::Chunked, None) if !http11 => {
            return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        (TransferEncoding::Chunked, None) => BodyLength::Chunked,
        (TransferEncoding::Absent, length) => BodyLength::Fixed(length.unwrap_or(0)),
    };
    let expects_continue = match scan.expect {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => http11,
        Some(_) => return Err(HeadError::Malformed("unknown expectation")),
    };
    Ok(RequestHead {
        method,
        target: target.to_owned(),
        host: host.to_owned(),
        http11,
        headers: scan.headers,
        length,
        keep_alive: if http11 { !scan.close } else { scan.keep_alive && !scan.close },
        expects_continue,
    })
}

/// Parses a whole response head, as delimited by [`find_end`], to a request that was not HEAD.
///
/// # Errors
/// As [`parse_request`]; the status of the error is not meant for anybody here.
pub fn parse_response(head: &[u8], limits: &HeadLimits) -> Result<ResponseHead, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_CAPACITY];
    let fields_max = limits.fields_max.min(FIELDS_CAPACITY);
    let mut parsed = httparse::Response::new(&mut fields[..fields_max]);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Malformed("the head ends early")),
        Err(error) => return Err(head_error(error)),
    }
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(HeadError::Malformed("incomplete status line"));
    };
    if !(100..1000).contains(&status) {
        return Err(HeadError::Malformed("bad status"));
    }
    let http11 = minor == 1;
    let scan = scan(parsed.headers, head.len(), Side::Response)?;
    let bodyless = status < 200 || status == 204 || status == 304;
    let length = match (scan.transfer_encoding, scan.content_length) {
        _ if bodyless => BodyLength::Fixed(0),
        (TransferEncoding::Other, _) => return Err(HeadError::UnknownTransferCoding),
        (TransferEncoding::Chunked, Some(_)) => {
            return Err(HeadError::Malformed("both Content-Length and Transfer-Encoding"));
        }
        (TransferEncoding::Chunked, None) => BodyLength::Chunked,
        (TransferEncoding::Absent, Some(length)) => BodyLength::Fixed(length),
        (TransferEncoding::Absent, None) => BodyLength::UntilClose,
    };
    let keep_alive =
        length != BodyLength::UntilClose && if http11 { !scan.close } else { scan.keep_alive && !scan.close };
    Ok(ResponseHead { status, headers: scan.headers, length, keep_alive })
}

fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::UnknownVersion,
        httparse::Error::HeaderName => HeadError::Malformed("bad header name"),
        httparse::Error::HeaderValue => HeadError::Malformed("bad header value"),
        httparse::Error::NewLine => HeadError::Malformed("bad line end"),
        httparse::Error::Token => HeadError::Malformed("bad request line"),
        httparse::Error::Status => HeadError::Malformed("bad status"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TransferEncoding {
    Absent,
    Chunked,
    Other,
}

/// What one pass over the header lines finds.
struct Scan<'a> {
    headers: HeaderBlock,
    host: Option<&'a str>,
    expect: Option<&'a [u8]>,
    content_length: Option<u64>,
    transfer_encoding: TransferEncoding,
    close: bool,
    keep_alive: bool,
}

fn scan<'a>(fields: &[httparse::Header<'a>], bytes: usize, side: Side) -> Result<Scan<'a>, HeadError> {
    let mut scan = Scan {
        headers: HeaderBlock::with_capacity(bytes),
        host: None,
        expect: None,
        content_length: None,
        transfer_encoding: TransferEncoding::Absent,
        close: false,
        keep_alive: false,
    };
    // Rare: `Connection` names further headers that are hop-by-hop.
    let mut named = Vec::new();
    for field in fields {
        let value = field.value.trim_ascii();
        if is(field.name, "content-length") {
            if scan.content_length.is_some() {
                return Err(HeadError::Malformed("Content-Length twice"));
            }
            scan.content_length = Some(parse_length(value)?);
        } else if is(field.name, "transfer-encoding") {
            if scan.transfer_encoding != TransferEncoding::Absent {
                return Err(HeadError::Malformed("Transfer-Encoding twice"));
            }
            let chunked = value.eq_ignore_ascii_case(b"chunked");
            scan.transfer_encoding =
                if chunked { TransferEncoding::Chunked } else { TransferEncoding::Other };
        } else if is(field.name, "connection") {
            for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                if option.eq_ignore_ascii_case(b"close") {
                    scan.close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    scan.keep_alive = true;
                } else if !option.is_empty() {
                    named.push(option);
                }
            }
        } else if side == Side::Request && is(field.name, "host") {
            if scan.host.is_some() {
                return Err(HeadError::Malformed("Host twice"));
            }
            scan.host =
                Some(std::str::from_utf8(value).map_err(|_| HeadError::Malformed("bad Host header"))?);
        } else if side == Side::Request && is(field.name, "expect") {
            scan.expect = Some(value);
        } else if !is_hop_by_hop(field.name.as_bytes(), value) {
            scan.headers.push_valid(field.name.as_bytes(), value);
        }
    }
    if !named.is_empty() {
        let mut kept = HeaderBlock::with_capacity(bytes);
        for (name, value) in &scan.headers {
            if !named.iter().any(|other| name.eq_ignore_ascii_case(other)) {
                kept.push_valid(name, value);
            }
        }
        scan.headers = kept;
    }
    Ok(scan)
}

fn is(name: &str, lower: &str) -> bool {
    name.len() == lower.len() && name.eq_ignore_ascii_case(lower)
}

/// True for what may stand in `Host`, or nothing: no byte that could end the authority of a URL (RFC 9110, 7.2).
pub fn is_host(host: &str) -> bool {
    host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@,\\\"<>".contains(&byte))
}

/// True for headers that concern one connection and are never forwarded (RFC 9110, 7.6.1, and
/// `spec/container-contract.md`, A3). `Te: trailers` may pass.
pub fn is_hop_by_hop(name: &[u8], value: &[u8]) -> bool {
    match name.len() {
        2 => name.eq_ignore_ascii_case(b"te") && !value.eq_ignore_ascii_case(b"trailers"),
        7 => name.eq_ignore_ascii_case(b"trailer") || name.eq_ignore_ascii_case(b"upgrade"),
        10 => name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"connection"),
        16 => name.eq_ignore_ascii_case(b"proxy-connection"),
        17 => name.eq_ignore_ascii_case(b"transfer-encoding"),
        18 => name.eq_ignore_ascii_case(b"proxy-authenticate"),
        19 => name.eq_ignore_ascii_case(b"proxy-authorization"),
        _ => false,
    }
}

fn parse_length(value: &[u8]) -> Result<u64, HeadError> {
    let bad = HeadError::Malformed("bad Content-Length");
    if value.is_empty() || value.len() > 19 {
        return Err(bad);
    }
    value.iter().try_fold(0u64, |length, byte| match byte {
        b'0'..=b'9' => Ok(length * 10 + u64::from(byte - b'0')),
        _ => Err(bad),
    })
}

/// Splits an absolute-form target into authority and the rest; origin-form has no authority.
fn split_target<'a>(target: &'a str, method: &Method) -> Result<(Option<&'a str>, &'a str), HeadError> {
    if target.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
        return Err(HeadError::Malformed("bad byte in the request target"));
    }
    if target.starts_with('/') || (target == "*" && method == Method::OPTIONS) {
        return Ok((None, target));
    }
    let scheme_end = target.find("://").ok_or(HeadError::Malformed("bad request target"))?;
    let scheme = &target[..scheme_end];
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(HeadError::Malformed("bad scheme in the request target"));
    }
    let rest = &target[scheme_end + 3..];
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None if rest.contains('?') => return Err(HeadError::Malformed("bad request target")),
        None => (rest, "/"),
    };
    if authority.is_empty() {
        return Err(HeadError::Malformed("no host in the request target"));
    }
    Ok((Some(authority), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Result<RequestHead, HeadError> {
        let limits = HeadLimits::default();
        let end = find_end(head.as_bytes(), 0, &limits)?.expect("a whole head");
        parse_request(&head.as_bytes()[..end], &limits)
    }

    #[test]
    fn a_request_keeps_only_its_end_to_end_headers() {
        let head = request(
            "POST /t/a/b?x=1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 5\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: 5\r\nTE: gzip\r\nAccept: */*\r\n\r\n",
        )
        .expect("valid");
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.target, "/t/a/b?x=1");
        assert_eq!(head.host, "h:1");
        assert_eq!(head.length, BodyLength::Fixed(5));
        assert!(!head.keep_alive);
        assert_eq!(head.headers.as_bytes(), b"Accept: */*\r\n");
    }

    #[test]
    fn ambiguous_or_broken_heads_are_refused() {
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
            ("GET / HTTP/3.1\r\nHost: a\r\n\r\n", 505),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: coffee\r\n\r\n", 400),
            ("G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ];
        for (head, status) in cases {
            match request(head) {
                Err(error) => assert_eq!(error.status(), status, "{head:?}"),
                Ok(parsed) => panic!("{head:?} was accepted: {parsed:?}"),
            }
        }
    }

    #[test]
    fn an_absolute_target_overrides_the_host() {
        let head = request("GET http://b:2/x HTTP/1.1\r\nHost: a\r\n\r\n").expect("valid");
        assert_eq!((head.host.as_str(), head.target.as_str()), ("b:2", "/x"));
    }

    #[test]
    fn limits_are_kept() {
        let limits = HeadLimits { bytes_max: 64, target_bytes_max: 8, fields_max: 2 };
        assert_eq!(find_end(&[b'a'; 64], 0, &limits), Err(HeadError::TargetTooLong));
        let whole = [&[b'a'; 64][..], b"\r\n\r\n"].concat();
        assert_eq!(find_end(&whole, 0, &limits), Err(HeadError::TargetTooLong));
        assert_eq!(find_end(&whole[..66], 0, &limits), Err(HeadError::TargetTooLong));
        let many = b"GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\n\r\n";
        assert!(matches!(parse_request(many, &limits), Err(HeadError::TooLarge)));
        let long = b"GET /12345678 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(matches!(parse_request(long, &limits), Err(HeadError::TargetTooLong)));
        let mut endless = b"GET / HTTP/1.1\r\n".to_vec();
        endless.extend_from_slice(&[b'a'; 60]);
        assert_eq!(find_end(&endless, 0, &limits), Err(HeadError::TooLarge));
    }

    #[test]
    fn a_response_without_length_ends_with_the_connection() {
        let limits = HeadLimits::default();
        let head = parse_response(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", &limits).expect("valid");
        assert_eq!(head.length, BodyLength::UntilClose);
        assert!(!head.keep_alive);
        let head = parse_response(b"HTTP/1.1 204 No Content\r\n\r\n", &limits).expect("valid");
        assert_eq!(head.length, BodyLength::Fixed(0));
        assert!(head.keep_alive);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(bytes: Vec<u8>) {
            let limits = HeadLimits::default();
            if let Ok(Some(end)) = find_end(&bytes, 0, &limits) {
                drop(parse_request(&bytes[..end], &limits));
                drop(parse_response(&bytes[..end], &limits));
            }
        }

        #[test]
        fn the_end_of_a_head_does_not_depend_on_how_it_arrives(split in 0usize..40) {
            let head = b"GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\n\r\n";
            let limits = HeadLimits::default();
            let split = split.min(head.len() - 1);
            proptest::prop_assert_eq!(find_end(&head[..split], 0, &limits), Ok(None));
            proptest::prop_assert_eq!(find_end(head, split, &limits), Ok(Some(head.len())));
        }
    }
}
