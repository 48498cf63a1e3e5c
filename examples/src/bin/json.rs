//! Adds numbers: `{"numbers": [1, 2.5]}` gives `{"sum": 3.5, "count": 2}`.

use std::process::ExitCode;

use kiln_fdk::{Context, Json, Result};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Numbers {
    numbers: Vec<f64>,
}

#[derive(Serialize)]
struct Sum {
    sum: f64,
    count: usize,
}

fn main() -> ExitCode {
    kiln_fdk::run(|_: &Context, Json(input): Json<Numbers>| -> Result<Json<Sum>> {
        Ok(Json(Sum { sum: input.numbers.iter().sum(), count: input.numbers.len() }))
    })
}
