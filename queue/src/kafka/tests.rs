//! Replicas fed from a topic in memory.

use std::time::Duration;

use kiln_shared::ids::{AppId, CallId, FunctionId};
use kiln_shared::queue::{
    Enqueued, NewMessage, Outcome, Purge, Receipt, Redrive, Reserve, Reserved, Retry, Settlement,
};
use proptest::prelude::*;
use serde_json::Value;

use super::image::{self, frames};
use super::load::Reading;
use super::record::{self, Given, Header, Kind, PART_BYTES_MAX};
use super::replica::{Answer, Begun, Replica};
use crate::engine::{Operation, Reply};

/// Who writes in these tests, besides others.
const OWN: u64 = 7;

/// A topic, and a replica that has applied it.
struct Topic {
    records: Vec<Vec<u8>>,
    replica: Replica,
    number: u64,
    now_millis: i64,
    /// Each record is written twice.
    stutters: bool,
}

impl Topic {
    fn new() -> Self {
        let replica = Replica::new(OWN, 0);
        Self { records: Vec::new(), replica, number: 0, now_millis: 1_000_000, stutters: false }
    }

    /// Writes a record; its answer.
    fn write(&mut self, header: Header, content: &[u8]) -> Option<Answer> {
        let record = record::encode(&header, content);
        let answer = self.append(record.clone());
        if self.stutters {
            assert!(self.append(record).is_none(), "it counts once");
        }
        answer
    }

    fn append(&mut self, record: Vec<u8>) -> Option<Answer> {
        let offset = self.records.len() as i64;
        let applied = self.replica.apply(offset, &record).expect("a record");
        self.records.push(record);
        applied.map(|applied| applied.answer)
    }

    fn header(&mut self, kind: Kind) -> Header {
        self.number += 1;
        Header {
            kind,
            origin: OWN,
            number: self.number,
            now_millis: self.now_millis,
            base: -1,
            about: 0,
            part: 0,
            parts: 1,
        }
    }

    fn change(&mut self, operation: &Operation) -> Reply {
        let given = Given { seed: self.number, messages_max: None };
        let header = self.header(Kind::Operation);
        match self.write(header, &record::content(operation, given)) {
            Some(Answer::Operation(Ok((reply, _)))) => reply,
            other => panic!("{operation:?} was answered with {other:?}"),
        }
    }

    fn take(&mut self, messages_max: usize) -> Vec<Reserved> {
        let reserve = Reserve::new("worker", messages_max, Duration::from_secs(30));
        match self.change(&Operation::Reserve(reserve)) {
            Reply::Reserved(reserved) => reserved,
            other => panic!("a reserve was answered with {other:?}"),
        }
    }

    fn begin(&mut self) -> Option<Box<Begun>> {
        let header = self.header(Kind::Begin);
        match self.write(header, &[]) {
            Some(Answer::Begun(begun)) => begun,
            other => panic!("a begin was answered with {other:?}"),
        }
    }

    /// Writes an image's pieces, and what `between` does after each.
    fn finish(&mut self, before: Begun, mut between: impl FnMut(&mut Self)) {
        let begin = before.begin;
        let bytes: Vec<u8> = frames(before).flatten().collect();
        let pieces: Vec<&[u8]> = bytes.chunks(1_000).collect();
        for (part, piece) in (0..).zip(&pieces) {
            let header = Header { about: begin, part, ..self.header(Kind::Piece) };
            self.write(header, piece);
            between(self);
        }
        let header = Header { about: begin, parts: pieces.len() as u32, ..self.header(Kind::End) };
        self.write(header, &[]);
    }

    /// A replica that begins with the image that was written last.
    fn read_image(&self) -> Replica {
        let base = self.replica.base().expect("an image is complete").begin;
        let mut reading = Reading::default();
        let mut begin = None;
        for (offset, record) in (base..).zip(&self.records[base as usize..]) {
            let (header, content) = record::decode(record).expect("a record");
            match header.kind {
                Kind::Begin if offset == base => begin = Some((offset, header)),
                Kind::Piece if header.about == base => reading.add(&header, content).expect("a piece"),
                _ => {}
            }
        }
        let (machine, origins) = reading.finish().expect("a whole image");
        let mut replica = Replica::of_image(OWN, begin.expect("it begins"), machine, origins);
        for (offset, record) in (base + 1..).zip(&self.records[base as usize + 1..]) {
            replica.apply(offset, record).expect("a record");
        }
        replica
    }

    /// A replica of somebody else that has applied all.
    fn read_all(&self) -> Replica {
        let mut replica = Replica::new(OWN + 1, 0);
        for (offset, record) in (0..).zip(&self.records) {
            replica.apply(offset, record).expect("a record");
        }
        replica
    }
}

/// All that a machine is, in a form in which two can be compared.
#[derive(Debug, PartialEq)]
struct Shown {
    head: Value,
    messages: Vec<(Value, String, Vec<u8>)>,
    /// What is read from the indexes.
    seen: String,
}

fn state(replica: &Replica) -> Shown {
    let (head, messages) = replica.machine.image().apart();
    let messages = messages.map(|(piece, envelope, payload)| {
        (serde_json::to_value(piece).expect("JSON"), envelope, payload.to_vec())
    });
    let latest = replica.machine.latest_millis();
    let depth = replica.machine.read(&Operation::Depth, latest).expect("read");
    let seen = format!("{depth:?} {:?} {}", replica.machine.horizon(latest), replica.machine.held_bytes());
    Shown { head: serde_json::to_value(head).expect("JSON"), messages: messages.collect(), seen }
}

fn message(function: FunctionId, payload: Vec<u8>) -> NewMessage {
    let app: AppId = "01M2APP0000000000000000000".parse().expect("an id");
    NewMessage::new(CallId::generate(), function, app, payload)
}

fn functions() -> [FunctionId; 3] {
    [1, 2, 3].map(|number| format!("{number:026}").parse().expect("an id"))
}

/// Something that happens to a queue.
#[derive(Debug, Clone)]
enum Step {
    Enqueue {
        function: usize,
        messages: usize,
        delay: u64,
        deadline: Option<u64>,
        keyed: bool,
    },
    Reserve(usize),
    Settle(u8),
    Redrive(usize),
    Cancel(usize),
    Purge,
    Pass(u64),
    Begin,
    /// Writes what there is of an image.
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 1..5_usize, prop::sample::select(vec![0, 0, 5]), prop::option::of(1..60_u64), any::<bool>())
            .prop_map(|(function, messages, delay, deadline, keyed)| {
                Step::Enqueue { function, messages, delay, deadline, keyed }
            }),
        4 => (1..6_usize).prop_map(Step::Reserve),
        4 => any::<u8>().prop_map(Step::Settle),
        1 => (0..3_usize).prop_map(Step::Redrive),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => Just(Step::Purge),
        2 => (1..40_u64).prop_map(Step::Pass),
        1 => Just(Step::Begin),
        1 => Just(Step::Finish),
    ]
}

/// A run of steps, with what it knows of the queue.
struct Run {
    topic: Topic,
    sent: Vec<CallId>,
    held: Vec<Receipt>,
    begun: Option<Box<Begun>>,
}

impl Run {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Enqueue { function, messages, delay, deadline, keyed } => {
                let new = (0..messages).map(|place| NewMessage {
                    delay: Duration::from_secs(delay),
                    deadline: deadline.map(Duration::from_secs),
                    idempotency_key: keyed.then(|| place.to_string()),
                    ..message(functions()[function], vec![place as u8; place * 100])
                });
                let new: Vec<NewMessage> = new.collect();
                let Reply::Enqueued(enqueued) = self.topic.change(&Operation::Enqueue(new)) else {
                    panic!("not answered in kind")
                };
                self.sent.extend(enqueued.iter().filter(|e| matches!(e, Enqueued::New(_))).map(|e| e.id()));
            }
            Step::Reserve(messages_max) => {
                let taken = self.topic.take(messages_max);
                self.held.extend(taken.iter().map(|reserved| reserved.receipt));
            }
            Step::Settle(how) => {
                let settlements = self.held.drain(..).enumerate().map(|(place, receipt)| {
                    let error = || "no".to_owned();
                    let outcome = match (usize::from(how) + place) % 5 {
                        0 => Outcome::Unstarted,
                        1 => Outcome::Failed { error: error(), retry: Retry::ByPolicy },
                        2 => Outcome::Failed { error: error(), retry: Retry::Never },
                        _ => Outcome::Done,
                    };
                    Settlement { receipt, outcome }
                });
                let mut settlements: Vec<Settlement> = settlements.collect();
                settlements.sort_by_key(|settlement| settlement.receipt.id);
                settlements.dedup_by_key(|settlement| settlement.receipt.id);
                self.topic.change(&Operation::Settle(settlements));
            }
            Step::Redrive(function) => {
                let function_id = functions()[function];
                let redrive = Redrive::Function { function_id, messages_max: 2 };
                self.topic.change(&Operation::Redrive(redrive));
            }
            Step::Cancel(which) => {
                if let Some(id) = self.sent.get(which % self.sent.len().max(1)) {
                    self.topic.change(&Operation::Cancel(*id));
                }
            }
            Step::Purge => {
                self.topic.change(&Operation::Purge(Purge::Finished(Duration::from_secs(20))));
            }
            Step::Pass(seconds) => {
                self.topic.now_millis += seconds as i64 * 1_000;
                self.topic.change(&Operation::Sweep);
            }
            Step::Begin => {
                if let Some(begun) = self.topic.begin() {
                    self.begun = Some(begun);
                }
            }
            Step::Finish => {
                if let Some(begun) = self.begun.take() {
                    // Work goes on while it is written.
                    self.topic.finish(*begun, |topic| drop(topic.take(1)));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn every_process_has_the_same_queue_from_the_beginning_and_from_an_image(
        steps in prop::collection::vec(step(), 1..60), stutters in any::<bool>()
    ) {
        let topic = Topic { stutters, ..Topic::new() };
        let mut run = Run { topic, sent: Vec::new(), held: Vec::new(), begun: None };
        for step in &steps {
            run.step(step);
        }
        let topic = run.topic;
        let expected = state(&topic.replica);
        prop_assert_eq!(&state(&topic.read_all()), &expected);
        if topic.replica.base().is_some() {
            let read = topic.read_image();
            prop_assert_eq!(&state(&read), &expected);
            prop_assert_eq!(read.position(), topic.replica.position());
            prop_assert_eq!(read.base().map(|base| base.begin), topic.replica.base().map(|base| base.begin));
        }
    }

    #[test]
    fn what_is_in_pieces_comes_together(size in 0..3 * PART_BYTES_MAX, stutters in any::<bool>()) {
        let mut topic = Topic { stutters, ..Topic::new() };
        let sent = message(functions()[0], vec![5; size]);
        let answer = write_parts(&mut topic, &Operation::Enqueue(vec![sent.clone()]), |_, _| {});
        prop_assert!(matches!(answer, Some(Answer::Operation(Ok(_)))), "{:?}", answer);
        prop_assert_eq!(&topic.take(9)[0].payload, &sent.payload);
    }
}

/// Writes an operation in parts; the last one's answer.
fn write_parts(
    topic: &mut Topic,
    operation: &Operation,
    mut between: impl FnMut(&mut Topic, u32),
) -> Option<Answer> {
    let content = record::content(operation, Given { seed: 1, messages_max: None });
    let parts: Vec<&[u8]> = content.chunks(PART_BYTES_MAX).collect();
    let header = Header { parts: parts.len() as u32, origin: OWN + 5, ..topic.header(Kind::Operation) };
    let mut answer = None;
    for (part, content) in (0..).zip(&parts) {
        answer = topic.write(Header { part, ..header }, content);
        between(topic, part);
    }
    answer
}

#[test]
fn an_operation_that_an_image_cuts_in_two_counts_for_nothing_and_says_so() {
    let mut topic = Topic::new();
    let sent = Operation::Enqueue(vec![message(functions()[0], vec![5; 3 * PART_BYTES_MAX])]);
    let mut begun = None;
    let answer = write_parts(&mut topic, &sent, |topic, part| {
        if part == 1 {
            begun = topic.begin();
        }
    });
    assert!(matches!(answer, Some(Answer::Void)), "{answer:?}");
    topic.finish(*begun.expect("nobody else writes one"), |_| {});
    assert!(topic.take(1).is_empty());
    assert!(matches!(write_parts(&mut topic, &sent, |_, _| {}), Some(Answer::Operation(Ok(_)))));
    assert_eq!(topic.take(9).len(), 1);
    assert_eq!(state(&topic.read_image()), state(&topic.replica));
}

#[test]
fn one_image_is_written_at_a_time_until_its_writer_has_been_silent_for_long() {
    let mut topic = Topic::new();
    assert!(topic.begin().is_some());
    topic.now_millis += 599_999;
    assert!(topic.begin().is_none());
    topic.now_millis += 1;
    let begun = topic.begin().expect("the first was given up");
    topic.finish(*begun, |_| {});
    assert!(topic.begin().is_some(), "the last is complete");
}

#[test]
fn an_image_that_is_larger_than_the_log_that_is_worth_one_is_not_written_again_at_once() {
    let mut topic = Topic::new();
    topic.change(&Operation::Enqueue(vec![message(functions()[0], vec![5; 90_000])]));
    assert!(image::is_due(&topic.replica, 50_000, topic.now_millis));
    let begun = topic.begin().expect("nobody else writes one");
    topic.finish(*begun, |_| {});
    assert!(!image::is_due(&topic.replica, 50_000, topic.now_millis));
    // Twice its size has to be written first, or half a day to pass.
    for (written, is_due) in [(90_000, false), (95_000, true)] {
        topic.change(&Operation::Enqueue(vec![message(functions()[0], vec![5; written])]));
        assert_eq!(image::is_due(&topic.replica, 50_000, topic.now_millis), is_due);
    }
    let begun = topic.begin().expect("nobody else writes one");
    topic.finish(*begun, |_| {});
    assert!(!image::is_due(&topic.replica, 50_000, topic.now_millis + 12 * 3_600_000));
    assert!(image::is_due(&topic.replica, 50_000, topic.now_millis + 12 * 3_600_000 + 1));
}

#[test]
fn an_image_with_a_missing_piece_is_none() {
    let mut topic = Topic::new();
    let begun = topic.begin().expect("nobody else writes one");
    let header = Header { about: begun.begin, parts: 1, ..topic.header(Kind::End) };
    topic.write(header, &[]);
    assert_eq!(topic.replica.base(), None);
}

#[test]
fn time_does_not_go_back() {
    let mut topic = Topic::new();
    let delay = Duration::from_secs(10);
    topic.change(&Operation::Enqueue(vec![NewMessage { delay, ..message(functions()[0], Vec::new()) }]));
    topic.now_millis += 10_000;
    topic.change(&Operation::Sweep);
    topic.now_millis -= 60_000;
    assert_eq!(topic.take(9).len(), 1, "a process whose clock is late sees the time of the others");
}

#[test]
fn what_another_version_wrote_is_told() {
    let mut topic = Topic::new();
    let header = topic.header(Kind::Begin);
    let mut record = record::encode(&header, &[]);
    record[0] += 1;
    let said = topic.replica.apply(0, &record).expect_err("another form").to_string();
    assert!(said.contains("another version of Kiln wrote it"), "{said}");
    assert_eq!(topic.replica.position(), 0);
}
