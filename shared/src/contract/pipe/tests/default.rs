use super::*;

fn ended(pieces: &[&[u8]], exit: ContainerExit) -> Result<Option<Answered>, CallFailed> {
    decode_with(Framing::Default, &::http::Method::POST, &Limits::default(), pieces, Some(exit))
}

#[test]
fn the_body_goes_as_it_is() {
    assert_eq!(encode(&call(Format::Default, &[], "abc"), &[b"ab", b"c"]), b"abc");
}

#[test]
fn output_up_to_a_clean_exit_is_the_answer() {
    for (pieces, body) in [(&[&b"ab"[..], b"", b"c"][..], &b"abc"[..]), (&[], b"")] {
        let answered = ended(pieces, ContainerExit::Code(0)).expect("no error").expect("an answer");
        assert_eq!((answered.status, answered.headers.as_str()), (200, "Content-Type: application/json\r\n"));
        assert_eq!((answered.body.as_slice(), answered.fate), (body, ContainerFate::Kill));
    }
}

#[test]
fn a_failed_container_fails_its_call() {
    for (exit, text) in [
        (ContainerExit::Code(3), "container exit code 3"),
        (ContainerExit::Unknown, "error receiving function response"),
        (
            ContainerExit::OutOfMemory,
            "container out of memory, you may want to raise fn.memory for this function (default: 128MB)",
        ),
    ] {
        assert_eq!(message(ended(&[], exit)), text);
        assert_eq!(message(ended(&[b"begun"], exit)), text);
    }
}
