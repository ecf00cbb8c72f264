mod crash;
mod tiny_model;
