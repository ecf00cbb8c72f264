//! Everything against the real thing, in one binary so that llama.cpp is linked once.

mod anthropic;
mod clients;
mod completions;
mod crash;
mod crash_http;
mod decoding;
mod edge;
mod errors;
mod hostile;
mod lora;
mod many_models;
mod models;
mod ollama;
mod openai_chat;
mod openai_stream;
mod openai_sums;
mod openai_tools;
mod openapi;
mod ops;
mod responses;
mod structured;
mod support;
mod templates;
mod tiny_model;
mod tokenizer;
mod tools_real;
