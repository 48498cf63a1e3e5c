use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const PLENTY: u64 = 1 << 30;

fn piece(text: &str) -> Piece {
    Piece { bytes: Bytes::from(text.to_owned()), messages: 1 }
}

fn open(folder: &TempDir) -> Spool {
    Spool::open(folder.path(), &Room::new(PLENTY), Fsync::Never).expect("opens")
}

fn rest(spool: &mut Spool) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some((piece, _)) = spool.next().expect("reads") {
        texts.push(String::from_utf8(piece.bytes.to_vec()).expect("text"));
    }
    assert!(!spool.has_unread());
    texts
}

fn segments(folder: &TempDir) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(folder.path()).expect("lists").map(|entry| entry.expect("lists").path()).collect();
    found.retain(|path| number_of(path).is_some());
    found.sort();
    found
}

#[test]
fn what_was_appended_is_read_in_order_and_again_until_it_is_committed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut spool = open(&folder);
    let places: Vec<_> = ["a", "b", "c"].map(|text| spool.append(&piece(text)).expect("appends")).into();
    assert_eq!(rest(&mut spool), ["a", "b", "c"]);
    spool.commit(places[0]).expect("commits");
    spool.rewind();
    assert_eq!(rest(&mut spool), ["b", "c"]);
    drop(spool);
    let mut spool = open(&folder);
    assert_eq!(rest(&mut spool), ["b", "c"], "as after a crash");
    let last = spool.append(&piece("d")).expect("appends");
    assert_eq!(rest(&mut spool), ["d"]);
    spool.commit(last).expect("commits");
    assert_eq!(segments(&folder).len(), 0);
    assert_eq!((spool.bytes(), spool.room.used.load(Ordering::Relaxed)), (0, 0));
    drop(spool);
    assert!(rest(&mut open(&folder)).is_empty());
}

#[test]
fn segments_are_bounded_and_go_one_by_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut spool = open(&folder);
    let large = "x".repeat(SEGMENT_BYTES as usize / 2);
    let places: Vec<_> = (0..6).map(|_| spool.append(&piece(&large)).expect("appends")).collect();
    assert_eq!(segments(&folder).len(), 3);
    spool.commit(places[3]).expect("commits");
    assert_eq!(segments(&folder).len(), 2, "the place is the second one's end");
    spool.commit(places[4]).expect("commits");
    assert_eq!(segments(&folder).len(), 1);
    assert_eq!(rest(&mut spool).len(), 1);
}

#[test]
fn a_torn_end_is_passed_over_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    for (text, cut) in [("one", 1), ("two", 0)] {
        let mut spool = open(&folder);
        spool.append(&piece(text)).expect("appends");
        spool.append(&piece("torn")).expect("appends");
        drop(spool);
        let path = segments(&folder).pop().expect("a segment");
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        let length = file.metadata().expect("a length").len();
        if cut > 0 {
            file.set_len(length - cut).expect("cut");
        } else {
            file.write_all_at(b"!", length - 1).expect("written");
        }
    }
    let mut spool = open(&folder);
    spool.append(&piece("three")).expect("appends");
    assert_eq!(rest(&mut spool), ["one", "two", "three"]);
    assert_eq!(spool.take_torn(), 2);
}

#[test]
fn a_cursor_that_was_torn_sends_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut spool = open(&folder);
    let first = spool.append(&piece("a")).expect("appends");
    spool.append(&piece("b")).expect("appends");
    spool.commit(first).expect("commits");
    drop(spool);
    fs::write(folder.path().join(CURSOR), b"torn").expect("written");
    assert_eq!(rest(&mut open(&folder)), ["a", "b"]);
}

#[test]
fn room_is_shared_and_one_sink_has_half_of_it_at_most() {
    let folder = tempfile::tempdir().expect("a folder");
    let room = Room::new(1000);
    let mut spools: Vec<_> = ["a", "b", "c"]
        .map(|name| Spool::open(&folder.path().join(name), &room, Fsync::Always).expect("opens"))
        .into();
    let hundred = piece(&"x".repeat(100 - HEAD_BYTES));
    let mut place = Position::default();
    for spool in &mut spools[..2] {
        for _ in 0..5 {
            place = spool.append(&hundred).expect("there is room");
        }
        assert!(matches!(spool.append(&hundred), Err(AppendError::Full)));
    }
    assert!(matches!(spools[2].append(&hundred), Err(AppendError::Full)), "all is taken");
    spools[1].commit(place).expect("commits");
    spools[2].append(&hundred).expect("there is room again");
}

/// What may happen to a spool.
#[derive(Debug, Clone)]
enum Step {
    Append(u8),
    Read,
    Commit,
    Rewind,
    Crash,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_that_was_not_committed_is_lost_or_out_of_order(
        steps in prop::collection::vec(prop_oneof![
            4 => (1_u8..200).prop_map(Step::Append), 4 => Just(Step::Read), 2 => Just(Step::Commit),
            1 => Just(Step::Rewind), 1 => Just(Step::Crash),
        ], 0..60)
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = open(&folder);
        let (mut appended, mut committed, mut read) = (0_u64, 0_u64, 0_u64);
        let mut place = None;
        for step in steps {
            match step {
                Step::Append(length) => {
                    spool.append(&piece(&format!("{appended}:{}", "x".repeat(length.into())))).expect("appends");
                    appended += 1;
                }
                Step::Read => {
                    let found = spool.next().expect("reads");
                    prop_assert_eq!(found.is_some(), read < appended);
                    if let Some((piece, after)) = found {
                        let expected = format!("{read}:");
                        prop_assert!(piece.bytes.starts_with(expected.as_bytes()));
                        read += 1;
                        place = Some((after, read));
                    }
                }
                Step::Commit => if let Some((after, count)) = place.take() {
                    spool.commit(after).expect("commits");
                    committed = committed.max(count);
                },
                Step::Rewind => {
                    spool.rewind();
                    read = committed;
                    place = None;
                }
                Step::Crash => {
                    drop(spool);
                    spool = open(&folder);
                    read = committed;
                    place = None;
                }
            }
            prop_assert_eq!(spool.has_unread(), read < appended);
        }
    }
}
