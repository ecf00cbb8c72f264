//! `hearth lookup`: what follows what in texts, for `--lookup-cache-static`.

use super::say;
use crate::config::ConfigError;
use crate::engine::Vocabulary;
use crate::model::ModelFile;
use crate::model::fit::bytes;
use crate::model::ngrams::{Texts, Written};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct Lookup {
    /// The GGUF file that will be served with it; only its vocabulary is read
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Texts that its answers may repeat: a manual, source code, form letters
    #[arg(value_name = "TEXTFILE", required = true)]
    texts: Vec<PathBuf>,
    /// The file to write, in llama.cpp's format
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Most bytes of all texts together. A token takes eight bytes while it is counted.
const TEXT_BYTES_MAX: u64 = 256 << 20;

impl Lookup {
    pub fn run(self) -> Result<()> {
        ModelFile::open(&self.model)?;
        let vocabulary = Vocabulary::open(&self.model).map_err(|reason| anyhow!(reason))?;
        let (mut texts, mut n_tokens, mut left) = (Texts::default(), 0, TEXT_BYTES_MAX);
        for path in &self.texts {
            let text = read(path, &mut left)?;
            let tokens = vocabulary.tokenize(&text).map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
            n_tokens += tokens.len();
            texts.push(&tokens);
        }
        let written = write(&self.output, &texts).with_context(|| self.output.display().to_string())?;
        let Written { n_keys, n_bytes } = written;
        say!("{}: {n_keys} keys from {n_tokens} tokens, {}", self.output.display(), bytes(n_bytes));
        Ok(())
    }
}

/// A text, of which `left` bytes may still be read.
fn read(path: &Path, left: &mut u64) -> Result<String> {
    let refuse = |why: &str| ConfigError::unfit(format!("{}: {why}", path.display()));
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| refuse(&error.to_string()))?;
    file.take(*left + 1).read_to_end(&mut text).map_err(|error| refuse(&error.to_string()))?;
    match left.checked_sub(text.len() as u64) {
        Some(rest) => *left = rest,
        None => bail!(refuse(&format!("with it the texts have more than {TEXT_BYTES_MAX} bytes"))),
    }
    Ok(String::from_utf8(text).map_err(|_| refuse("this is no text in UTF-8"))?)
}

/// Beside the file first: a server that reads it meanwhile finds the old one or the new one, whole.
fn write(path: &Path, texts: &Texts) -> Result<Written> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let done = (|| {
        let mut out = BufWriter::new(File::create(&beside)?);
        let written = texts.write(&mut out)?;
        if written.n_keys == 0 {
            bail!(ConfigError::unfit("in the texts no three tokens follow one another".to_owned()));
        }
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&beside, path)?;
        Ok(written)
    })();
    if done.is_err() {
        // It may not even be there.
        let _ = std::fs::remove_file(&beside);
    }
    done
}
