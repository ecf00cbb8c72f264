//! GPUs: what is told of them, and that answers computed on one are those of the CPU. Without one only the first is looked at.

use crate::support::served::{Served, root};
use serde_json::{Value, json};
use std::process::{Command, Output};

fn hearth(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(arguments).current_dir(root()).output().expect("the binary under test starts")
}

fn gpus() -> Vec<Value> {
    let told = hearth(&["gpus", "--json"]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).expect("a JSON array")
}

#[test]
fn gpus_are_told_with_their_memory() {
    let gpus = gpus();
    let text = hearth(&["gpus"]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert_eq!(text.contains("on the CPU"), gpus.is_empty(), "{text}");
    let n_told = text.lines().filter(|line| !line.starts_with("can't be loaded: ")).count();
    assert_eq!(n_told, gpus.len().max(1), "{text}");
    for gpu in &gpus {
        assert!(text.contains(gpu["name"].as_str().expect("a name")), "{text}");
        assert!(gpu["free_bytes"].as_u64() <= gpu["total_bytes"].as_u64(), "{gpu}");
    }
}

#[test]
fn more_layers_than_the_gpu_holds_are_refused_with_the_number_that_fits() {
    let gpus = gpus();
    if !gpus.iter().any(|gpu| gpu["is_integrated"] == false) {
        return;
    }
    // 3 KiB a cell: 380 GiB.
    let asked = ["serve", "models/hearth-demo.gguf", "--port", "0", "-c", "134000000", "-np", "1"];
    let refused = hearth(&[&asked[..], &["-ngl", "all"]].concat());
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("--n-gpu-layers") && error.contains("would fit"), "{error}");
}

#[tokio::test]
async fn the_gpu_answers_as_the_cpu_does() {
    if gpus().is_empty() {
        return;
    }
    let client = reqwest::Client::new();
    let mut answers = Vec::new();
    for layers in ["0", "all", "3"] {
        let served = Served::of(&["models/hearth-demo.gguf", "--alias", "m", "-ngl", layers]);
        let mut of_these = Vec::new();
        for question in ["What is the capital of France?", "Say hello.", "How many days has a week?"] {
            let body = json!({ "model": "m", "messages": [{ "role": "user", "content": question }], "temperature": 0 });
            let answer = client.post(format!("{}/v1/chat/completions", served.url)).json(&body).send().await;
            let answer: Value = answer.expect("an answer").json().await.expect("JSON");
            of_these.push(answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned());
        }
        answers.push(of_these);
    }
    assert_eq!((&answers[1], &answers[2]), (&answers[0], &answers[0]));
}
