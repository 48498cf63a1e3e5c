//! From a path to a function, in a catalog of 100,000.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use kiln_api::{Change, Changes, Snapshot};
use kiln_benches::{CpuTime, Rounds, short};
use kiln_lb::route::{Route, RouteTable, classify, decode};
use kiln_shared::model::{App, AppInput, FunctionInput, FunctionResource, Trigger, TriggerInput};

const APPS: usize = 1000;
const FUNCTIONS_PER_APP: usize = 100;

fn catalog() -> Snapshot {
    let now = Timestamp::UNIX_EPOCH;
    let mut snapshot = Snapshot { revision: 1, ..Snapshot::default() };
    for app in 0..APPS {
        let input = AppInput { name: format!("app-{app}"), ..AppInput::default() };
        let app = App::create(&input, now).expect("the name is valid");
        for number in 0..FUNCTIONS_PER_APP {
            let input = FunctionInput {
                name: format!("function-{number}"),
                app_id: app.id.as_str().to_owned(),
                image: "registry.example.com/team/function:1.0.0".to_owned(),
                ..FunctionInput::default()
            };
            let function = FunctionResource::create(&input, &app, now).expect("the input is valid");
            let input = TriggerInput {
                name: format!("trigger-{number}"),
                app_id: app.id.as_str().to_owned(),
                fn_id: function.id.as_str().to_owned(),
                kind: "http".to_owned(),
                source: format!("/v1/functions/{number}"),
                ..TriggerInput::default()
            };
            snapshot
                .triggers
                .push(Trigger::create(&input, app.id, &function, now).expect("the input is valid"));
            snapshot.functions.push(function);
        }
        snapshot.apps.push(app);
    }
    snapshot
}

fn lookups(criterion: &mut Criterion<CpuTime>) {
    let snapshot = catalog();
    let invokes: Vec<String> =
        snapshot.functions.iter().map(|function| format!("/invoke/{}", function.id)).collect();
    let triggers: Vec<String> = (0..APPS * FUNCTIONS_PER_APP)
        .map(|n| format!("/t/app-{}/v1/functions/{}", n / FUNCTIONS_PER_APP, n % FUNCTIONS_PER_APP))
        .collect();
    let unknown: Vec<String> = triggers.iter().map(|path| format!("{path}/x")).collect();
    let mut table = RouteTable::new();
    table.reset(snapshot);
    let mut reader = table.reader();
    let mut group = criterion.benchmark_group("routes/100000");
    let cases = [
        ("by id, all in turn", &invokes[..]),
        ("by id, one hot", &invokes[..1]),
        ("by trigger, all in turn", &triggers[..]),
        ("by trigger, one hot", &triggers[..1]),
        ("unknown source", &unknown[..]),
    ];
    for (name, paths) in cases {
        let mut rounds = Rounds::of(paths);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let path = decode(black_box(rounds.take()).as_bytes())?;
                reader.routes().resolve(classify(&path)).map(|route| matches!(route, Route::Other))
            });
        });
    }
    group.finish();
}

fn changes(criterion: &mut Criterion<CpuTime>) {
    let snapshot = catalog();
    let function = snapshot.functions[4711].clone();
    let mut group = criterion.benchmark_group("routes/100000");
    let mut table = RouteTable::new();
    table.reset(snapshot.clone());
    let mut revision = 1;
    group.bench_function("one function changed, published", |bench| {
        bench.iter(|| {
            revision += 1;
            let image = format!("registry.example.com/team/function:{revision}");
            let function = FunctionResource { image, ..function.clone() };
            table.apply(Changes {
                revision,
                changes: vec![Change::Function(function)],
                ..Changes::default()
            });
        });
    });
    group.sample_size(10);
    group.bench_function("everything loaded", |bench| {
        bench.iter_batched(
            || (RouteTable::new(), snapshot.clone()),
            |(mut table, snapshot)| {
                table.reset(snapshot);
                table
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group! { name = benches; config = short(); targets = lookups, changes }
criterion_main!(benches);
