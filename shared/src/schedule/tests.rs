use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect("a zone")
}

fn schedule(line: &str, zone_name: &str, jitter: u64, misfire: Misfire) -> Schedule {
    Schedule::new(line, zone(zone_name), Duration::from_secs(jitter), misfire).expect("a schedule")
}

fn ticks(line: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = schedule(line, zone_name, 0, Misfire::All);
    let next = |tick: &Timestamp| schedule.next_after(*tick);
    let ticks = std::iter::successors(next(&at(after)), next);
    ticks.take(count).map(|tick| tick.to_string()).collect()
}

#[test]
fn five_fields_six_fields_and_words_are_cron_lines() {
    let from = "2026-11-23T10:07:30.5Z";
    assert_eq!(ticks("*/5 * * * *", "UTC", from, 2), ["2026-11-23T10:10:00Z", "2026-11-23T10:15:00Z"]);
    assert_eq!(ticks("* * * * * *", "UTC", from, 2), ["2026-11-23T10:07:31Z", "2026-11-23T10:07:32Z"]);
    assert_eq!(ticks("@hourly", "UTC", from, 1), ["2026-11-23T11:00:00Z"]);
    assert_eq!(ticks("0 9 * * MON-FRI", "Europe/Vienna", from, 1), ["2026-11-24T08:00:00Z"]);
}

#[test]
fn what_is_no_cron_line_is_refused_and_one_that_never_comes_too() {
    let long = "*".repeat(LINE_BYTES_MAX + 1);
    for line in ["", "* * * *", "60 * * * *", "* * * * * * *", "@never", "each day", "0 0 30 2 *", &long] {
        let refused = Schedule::new(line, TimeZone::UTC, Duration::ZERO, Misfire::Once);
        assert!(refused.is_err(), "{line:?}");
    }
}

/// Athens: 2026-03-29 03:00 becomes 04:00, at 01:00 UTC. New York: 2026-03-08 02:00 becomes 03:00, at 07:00 UTC.
#[test]
fn a_time_of_day_in_the_gap_comes_right_after_it_and_steps_leave_it_out() {
    assert_eq!(
        ticks("30 3 * * *", "Europe/Athens", "2026-03-28T12:00:00Z", 2),
        ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    );
    assert_eq!(
        ticks("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2),
        ["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"]
    );
    assert_eq!(
        ticks("*/30 * * * *", "Europe/Athens", "2026-03-29T00:00:00Z", 3),
        ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]
    );
}

/// Athens: 2026-10-25 04:00 becomes 03:00, at 01:00 UTC. New York: 2026-11-01 02:00 becomes 01:00, at 06:00 UTC.
#[test]
fn a_time_of_day_in_the_fold_comes_once_and_steps_go_on() {
    assert_eq!(
        ticks("30 3 * * *", "Europe/Athens", "2026-10-24T12:00:00Z", 2),
        ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    );
    assert_eq!(
        ticks("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2),
        ["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"]
    );
    assert_eq!(
        ticks("*/30 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 4),
        ["2026-11-01T05:30:00Z", "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z", "2026-11-01T07:00:00Z"]
    );
}

#[test]
fn missed_ticks_are_skipped_or_made_up_for_as_asked() {
    let (id, last, now) = (TriggerId::generate(), at("2026-11-23T10:00:00Z"), at("2026-11-23T13:00:10Z"));
    let due = |line, misfire| schedule(line, "UTC", 0, misfire).due(id, last, now).expect("due");
    let newest = at("2026-11-23T13:00:00Z");
    let hourly = |ticks: &[&str]| Due { ticks: ticks.iter().map(|tick| at(tick)).collect(), newest };
    let (eleven, twelve, thirteen) = ("2026-11-23T11:00:00Z", "2026-11-23T12:00:00Z", "2026-11-23T13:00:00Z");
    assert_eq!(due("@hourly", Misfire::Skip), hourly(&[thirteen]));
    assert_eq!(due("@hourly", Misfire::Once), hourly(&[twelve, thirteen]));
    assert_eq!(due("@hourly", Misfire::All), hourly(&[eleven, twelve, thirteen]));
    // Of three hours of seconds: those on time, and as many as are made up for.
    assert_eq!(due("* * * * * *", Misfire::All).ticks.len(), 31 + MADE_UP_MAX);
    let all_missed = Due { ticks: Vec::new(), newest: at("2026-11-23T12:30:00Z") };
    assert_eq!(due("30 * * * *", Misfire::Skip), all_missed);
}

#[test]
fn a_clock_that_went_back_makes_nothing_due() {
    let schedule = schedule("* * * * * *", "UTC", 0, Misfire::All);
    let (id, last) = (TriggerId::generate(), at("2026-11-23T10:00:00Z"));
    assert_eq!(schedule.due(id, last, at("2026-11-23T09:00:00Z")), None);
    assert_eq!(schedule.next_due(id, last), Some(at("2026-11-23T10:00:01Z")));
}

#[test]
fn the_ends_of_time_have_no_ticks_and_no_panic() {
    let schedule = schedule("@yearly", "Europe/Athens", 60, Misfire::All);
    let id = TriggerId::generate();
    assert_eq!(schedule.next_after(Timestamp::MAX), None);
    assert_eq!(schedule.due(id, Timestamp::MIN, Timestamp::MIN), None);
    assert_eq!(schedule.due(id, Timestamp::MAX, Timestamp::MAX), None);
}

fn lines() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "* * * * * *",
        "*/7 * * * * *",
        "*/5 * * * *",
        "30 2 * * *",
        "30 3 * * *",
        "0 */2 * * *",
        "0 1,3 * * *",
        "15,45 1-3 * * *",
        "@hourly",
        "@daily",
    ])
}

/// Some hours around moments at which clocks are put forward or back.
fn moments() -> impl Strategy<Value = Timestamp> {
    let changes =
        ["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"];
    (prop::sample::select(changes.to_vec()), -14_400_000i64..7_200_000)
        .prop_map(|(change, shift)| at(change) + SignedDuration::from_millis(shift))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Looked at now and then, at moments that are within the time in which ticks are on time, or made up for by
    /// `all`: each tick comes once, in order, and never before it is due.
    #[test]
    fn each_tick_is_given_once_and_in_order(
        line in lines(),
        zone_name in prop::sample::select(vec!["Europe/Athens", "America/New_York", "UTC"]),
        jitter in 0u64..90,
        start in moments(),
        steps in prop::collection::vec(1i64..100_000, 1..60),
    ) {
        let (schedule, id) = (schedule(line, zone_name, jitter, Misfire::All), TriggerId::generate());
        let (mut last, mut now, mut given) = (start, start, Vec::new());
        for step in steps {
            now += SignedDuration::from_millis(step);
            if let Some(due) = schedule.due(id, last, now) {
                prop_assert!(due.ticks.len() <= MADE_UP_MAX + 31);
                prop_assert!(schedule.next_due(id, last).is_some_and(|due| due <= now));
                last = due.newest;
                given.extend(due.ticks);
            } else {
                prop_assert!(schedule.next_due(id, last).is_none_or(|due| due > now));
            }
        }
        let expected: Vec<_> = std::iter::successors(schedule.next_after(start), |tick| schedule.next_after(*tick))
            .take_while(|tick| schedule.due_at(id, *tick, schedule.next_after(*tick)) <= now)
            .collect();
        prop_assert_eq!(given, expected);
    }

    #[test]
    fn a_tick_is_due_within_its_jitter_and_before_the_next_tick(
        line in lines(), jitter in 0u64..3700, start in moments(),
    ) {
        let (schedule, id) = (schedule(line, "Europe/Athens", jitter, Misfire::All), TriggerId::generate());
        let tick = schedule.next_after(start).expect("a tick");
        let (due, next) = (schedule.next_due(id, start).expect("due"), schedule.next_after(tick).expect("a tick"));
        prop_assert!(due >= tick && due < next);
        prop_assert!(due.duration_since(tick).unsigned_abs() <= JITTER_MAX);
        prop_assert!(jitter > 0 || due == tick);
    }

    #[test]
    fn no_text_makes_the_parser_panic(line in "[ -~]{0,40}") {
        drop(Schedule::new(&line, TimeZone::UTC, Duration::ZERO, Misfire::Once));
    }
}
