//! Everything against the real thing, in one binary so that llama.cpp is linked once.

mod clients;
mod crash;
mod tiny_model;
