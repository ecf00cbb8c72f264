//! The real binary as a child: `BENCH_HEARTH`, or the one that was built with the bench.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub fn hearth() -> String {
    std::env::var("BENCH_HEARTH").unwrap_or_else(|_| env!("CARGO_BIN_EXE_hearth").to_owned())
}

/// Starts `hearth serve` in `dir`; returns as soon as it has said where it listens. `stderr`: where its log goes.
pub fn serve(dir: &Path, args: &[&str], stderr: Stdio) -> Result<(Child, SocketAddr), Box<dyn Error + Send + Sync>> {
    let mut command = Command::new(hearth());
    command.arg("serve").args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let mut child = command.spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("stdout is piped")?).read_line(&mut line)?;
    let address = line.trim().rsplit_once("://").ok_or("no address in the first line")?.1.parse()?;
    Ok((child, address))
}
