//! How one setting's value is written: on the command line, in a variable, in `hearth.toml`.

use crate::chat::{Mirostat, SamplerKind};
use crate::engine::Pooling;
use crate::engine::config::{DraftMode, EmbedMode, FlashAttn, GpuLayers, KvType};
use crate::gateway::{CacheScope, KeepAlive};
use crate::telemetry::LogFormat;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A type that settings may have. `from_text` is for flags and variables; what `hearth.toml` holds is turned into text
/// first, so that both accept the same.
pub trait Written: Sized {
    /// What is accepted, for error texts: "a whole number".
    const EXPECTS: &'static str;
    /// Given alone, the flag means `true`.
    const IS_SWITCH: bool = false;
    /// May be given several times, and as an array in the file.
    const IS_LIST: bool = false;

    /// `texts` has one element unless this is a list. `None`: not such a value.
    fn from_texts(texts: &[String]) -> Option<Self>;
    /// The value as `hearth.toml` would hold it.
    fn to_toml(&self) -> toml::Value;
}

fn last(texts: &[String]) -> Option<&str> {
    texts.last().map(|text| text.trim())
}

macro_rules! numbers {
    ($($kind:ty, $expects:literal, $toml:expr;)*) => {$(
        impl Written for $kind {
            const EXPECTS: &'static str = $expects;

            fn from_texts(texts: &[String]) -> Option<Self> {
                last(texts)?.parse().ok()
            }

            fn to_toml(&self) -> toml::Value {
                $toml(*self)
            }
        }
    )*};
}

numbers! {
    u16, "a whole number from 0 to 65535", |n| toml::Value::Integer(i64::from(n));
    u32, "a whole number, 0 or more", |n| toml::Value::Integer(i64::from(n));
    i32, "a whole number", |n| toml::Value::Integer(i64::from(n));
    i64, "a whole number", toml::Value::Integer;
    // By way of text: 0.7 stays 0.7 where a plain widening says 0.699999988.
    f32, "a number", |n: f32| toml::Value::Float(n.to_string().parse().unwrap_or(f64::from(n)));
    bool, "true or false", toml::Value::Boolean;
}

/// A switch: `--strict`, `--strict=false`, `--no-strict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl Written for Switch {
    const EXPECTS: &'static str = "true or false";
    const IS_SWITCH: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        match last(texts)? {
            "true" | "1" | "on" | "yes" => Some(Switch(true)),
            "false" | "0" | "off" | "no" => Some(Switch(false)),
            _ => None,
        }
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::Boolean(self.0)
    }
}

impl Written for String {
    const EXPECTS: &'static str = "a text that is not empty";

    fn from_texts(texts: &[String]) -> Option<Self> {
        last(texts).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::String(self.clone())
    }
}

impl Written for PathBuf {
    const EXPECTS: &'static str = "a path";

    fn from_texts(texts: &[String]) -> Option<Self> {
        texts.last().filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::String(self.display().to_string())
    }
}

/// Texts, given one by one or with commas between.
impl Written for Vec<String> {
    const EXPECTS: &'static str = "a list of texts, none of them empty";
    const IS_LIST: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        let items: Vec<String> = texts.iter().flat_map(|text| text.split(',')).map(|s| s.trim().to_owned()).collect();
        items.iter().all(|item| !item.is_empty()).then_some(items)
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::Array(self.iter().cloned().map(toml::Value::String).collect())
    }
}

/// Networks, or single addresses.
impl Written for Vec<IpNet> {
    const EXPECTS: &'static str = "a list of networks such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1";
    const IS_LIST: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        let one = |text: &str| match text.parse::<IpNet>() {
            Ok(net) => Some(net.trunc()),
            Err(_) => text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical())),
        };
        texts.iter().flat_map(|text| text.split(',')).map(|text| one(text.trim())).collect()
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::Array(self.iter().map(|net| toml::Value::String(net.to_string())).collect())
    }
}

/// A time in seconds; decimals and the endings `ms`, `s`, `m`, `h` are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl Written for Seconds {
    const EXPECTS: &'static str = "a time such as 30, 1.5 or 500ms, at most a year";

    fn from_texts(texts: &[String]) -> Option<Self> {
        const YEAR_S: f64 = 366.0 * 86_400.0;
        let text = last(texts)?;
        let endings = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
        let (number, unit) = endings
            .into_iter()
            .find_map(|(ending, unit)| text.strip_suffix(ending).map(|number| (number, unit)))
            .unwrap_or((text, 1.0));
        let seconds = number.trim().parse::<f64>().ok()? * unit;
        (0.0..=YEAR_S).contains(&seconds).then(|| Seconds(Duration::from_secs_f64(seconds)))
    }

    fn to_toml(&self) -> toml::Value {
        match i64::try_from(self.0.as_secs()) {
            Ok(whole) if self.0.subsec_nanos() == 0 => toml::Value::Integer(whole),
            _ => toml::Value::Float(self.0.as_secs_f64()),
        }
    }
}

/// Ollama's `keep_alive`: a time, or a negative one for ever.
impl Written for KeepAlive {
    const EXPECTS: &'static str = "a time such as 5m or 300, or -1 for always";

    fn from_texts(texts: &[String]) -> Option<Self> {
        match last(texts)?.strip_prefix('-') {
            Some(time) => Seconds::from_texts(&[time.to_owned()]).map(|_| KeepAlive::Forever),
            None => Seconds::from_texts(texts).map(|Seconds(time)| KeepAlive::For(time)),
        }
    }

    fn to_toml(&self) -> toml::Value {
        match self {
            KeepAlive::Forever => toml::Value::Integer(-1),
            KeepAlive::For(time) => Seconds(*time).to_toml(),
        }
    }
}

/// A SHA-256 in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sha256Hex(pub String);

impl Written for Vec<Sha256Hex> {
    const EXPECTS: &'static str = "a SHA-256 (64 hexadecimal digits), one for each file";
    const IS_LIST: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        let one = |text: &str| {
            let text = text.trim().to_ascii_lowercase();
            let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_digest.then_some(Sha256Hex(text))
        };
        texts.iter().flat_map(|text| text.split(',')).map(one).collect()
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::Array(self.iter().map(|Sha256Hex(hex)| hex.clone().into()).collect())
    }
}

/// `FILE` or `FILE:SCALE`.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    pub path: PathBuf,
    pub scale: f32,
}

impl Written for Vec<Lora> {
    const EXPECTS: &'static str = "a list of files, each with :SCALE behind it where that is not 1";
    const IS_LIST: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        let one = |text: &str| {
            let scaled = text.rsplit_once(':').and_then(|(file, scale)| Some((file, scale.trim().parse().ok()?)));
            let (file, scale) = scaled.unwrap_or((text, 1.0));
            (!file.is_empty()).then(|| Lora { path: PathBuf::from(file), scale })
        };
        texts.iter().flat_map(|text| text.split(',')).map(|text| one(text.trim())).collect()
    }

    fn to_toml(&self) -> toml::Value {
        let one = |lora: &Lora| toml::Value::String(format!("{}:{}", lora.path.display(), lora.scale));
        toml::Value::Array(self.iter().map(one).collect())
    }
}

/// Whether requests may be answered by other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    Never,
    Allowed,
}

/// When a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadWhen {
    Start,
    Lazy,
}

/// Whether a model that can think does where a request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    On,
    Off,
    Auto,
}

impl Reasoning {
    /// `None`: as the template has it.
    pub fn thinks(self) -> Option<bool> {
        match self {
            Reasoning::On => Some(true),
            Reasoning::Off => Some(false),
            Reasoning::Auto => None,
        }
    }
}

/// A number of bytes; the endings `K`, `M`, `G` (also `KiB`, …) are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub usize);

impl Written for ByteSize {
    const EXPECTS: &'static str = "a number of bytes such as 1048576, 512K or 64MiB";

    fn from_texts(texts: &[String]) -> Option<Self> {
        let text = last(texts)?;
        let text = text.trim_end_matches(['B', 'b']).trim_end_matches('i');
        let (number, shift) = match text.char_indices().next_back()? {
            (at, 'K' | 'k') => (&text[..at], 10),
            (at, 'M' | 'm') => (&text[..at], 20),
            (at, 'G' | 'g') => (&text[..at], 30),
            _ => (text, 0),
        };
        number.trim().parse::<usize>().ok()?.checked_mul(1 << shift).map(ByteSize)
    }

    fn to_toml(&self) -> toml::Value {
        for (shift, ending) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            let unit = 1usize << shift;
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return toml::Value::String(format!("{}{ending}", self.0 / unit));
            }
        }
        i64::try_from(self.0).map_or_else(|_| toml::Value::String(self.0.to_string()), toml::Value::Integer)
    }
}

impl Written for GpuLayers {
    const EXPECTS: &'static str = "a number of layers, all or auto";

    fn from_texts(texts: &[String]) -> Option<Self> {
        match last(texts)? {
            // The numbers are llama-server's.
            "auto" | "-1" => Some(GpuLayers::Auto),
            "all" | "-2" => Some(GpuLayers::All),
            text => text.parse().ok().map(GpuLayers::Count),
        }
    }

    fn to_toml(&self) -> toml::Value {
        match self {
            GpuLayers::Auto => toml::Value::String("auto".into()),
            GpuLayers::All => toml::Value::String("all".into()),
            GpuLayers::Count(n) => toml::Value::Integer((*n).into()),
        }
    }
}

/// Types that are one word of a few.
/// `--cache-type-k`: `None`: as the memory allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheElement(pub Option<KvType>);

macro_rules! words {
    ($($kind:ty, $expects:literal, [$($word:literal => $value:expr),* $(,)?];)*) => {$(
        impl Written for $kind {
            const EXPECTS: &'static str = $expects;

            fn from_texts(texts: &[String]) -> Option<Self> {
                match last(texts)?.to_ascii_lowercase().as_str() {
                    $($word => Some($value),)*
                    _ => None,
                }
            }

            fn to_toml(&self) -> toml::Value {
                $(if *self == $value { return toml::Value::String($word.into()); })*
                toml::Value::String(String::new())
            }
        }
    )*};
}

words! {
    CacheElement, "one of auto, f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1", [
        "auto" => CacheElement(None),
        "f32" => CacheElement(Some(KvType::F32)), "f16" => CacheElement(Some(KvType::F16)),
        "bf16" => CacheElement(Some(KvType::Bf16)), "q8_0" => CacheElement(Some(KvType::Q8_0)),
        "q4_0" => CacheElement(Some(KvType::Q4_0)), "q4_1" => CacheElement(Some(KvType::Q4_1)),
        "iq4_nl" => CacheElement(Some(KvType::Iq4Nl)), "q5_0" => CacheElement(Some(KvType::Q5_0)),
        "q5_1" => CacheElement(Some(KvType::Q5_1)),
    ];
    FlashAttn, "one of auto, on, off", [
        "auto" => FlashAttn::Auto, "on" => FlashAttn::On, "off" => FlashAttn::Off,
        "1" => FlashAttn::On, "0" => FlashAttn::Off, "true" => FlashAttn::On, "false" => FlashAttn::Off,
    ];
    Reasoning, "one of on, off, auto", ["auto" => Reasoning::Auto, "on" => Reasoning::On, "off" => Reasoning::Off];
    CacheScope, "key or team", ["key" => CacheScope::Key, "team" => CacheScope::Team];
    Egress, "allowed or never", ["never" => Egress::Never, "allowed" => Egress::Allowed];
    LoadWhen, "start or lazy", ["start" => LoadWhen::Start, "lazy" => LoadWhen::Lazy];
    Pooling, "one of none, mean, cls, last, rank", [
        "none" => Pooling::None, "mean" => Pooling::Mean, "cls" => Pooling::Cls, "last" => Pooling::Last, "rank" => Pooling::Rank,
    ];
    LogFormat, "one of auto, human, json", [
        "auto" => LogFormat::Auto, "human" => LogFormat::Human, "json" => LogFormat::Json,
    ];
    DraftMode, "one of auto, none, draft-simple, draft-eagle3, draft-mtp, draft-dflash, draft-dspark", [
        "auto" => DraftMode::Auto, "none" => DraftMode::None, "draft-simple" => DraftMode::Simple,
        "draft-eagle3" => DraftMode::Eagle3, "draft-mtp" => DraftMode::Mtp, "draft-dflash" => DraftMode::Dflash,
        "draft-dspark" => DraftMode::Dspark,
    ];
    Mirostat, "0 (off), 1 or 2", ["0" => Mirostat::Off, "1" => Mirostat::V1, "2" => Mirostat::V2];
}

/// `--embeddings` alone means on.
impl Written for EmbedMode {
    const EXPECTS: &'static str = "one of auto, on, off";
    const IS_SWITCH: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        match last(texts)? {
            "auto" => Some(EmbedMode::Auto),
            "on" | "true" | "1" | "yes" => Some(EmbedMode::On),
            "off" | "false" | "0" | "no" => Some(EmbedMode::Off),
            _ => None,
        }
    }

    fn to_toml(&self) -> toml::Value {
        let word = match self {
            EmbedMode::Auto => "auto",
            EmbedMode::On => "on",
            EmbedMode::Off => "off",
        };
        toml::Value::String(word.into())
    }
}

/// Names of samplers in order, separated by `;` as llama-server's `--samplers`, or by commas.
impl Written for Vec<SamplerKind> {
    const EXPECTS: &'static str = "sampler names separated by ; (penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature, infill)";
    const IS_LIST: bool = true;

    fn from_texts(texts: &[String]) -> Option<Self> {
        texts.iter().flat_map(|text| text.split([';', ','])).map(|name| SamplerKind::from_name(name.trim())).collect()
    }

    fn to_toml(&self) -> toml::Value {
        toml::Value::Array(self.iter().map(|kind| toml::Value::String(kind.name().into())).collect())
    }
}

/// The text forms of a value in the file: one, or each element of an array. `None` for tables and nested arrays.
pub(super) fn toml_texts(value: &toml::Value, is_list: bool) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(n) => Some(vec![n.to_string()]),
        toml::Value::Float(n) => Some(vec![n.to_string()]),
        toml::Value::Boolean(yes) => Some(vec![yes.to_string()]),
        toml::Value::Array(items) if is_list => {
            items.iter().map(|item| toml_texts(item, false).and_then(|texts| texts.into_iter().next())).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Written>(text: &str) -> Option<T> {
        T::from_texts(&[text.to_owned()])
    }

    #[test]
    fn times_and_sizes_have_units() {
        let seconds = |text: &str| read::<Seconds>(text).map(|s| s.0.as_millis());
        assert_eq!(seconds("30"), Some(30_000));
        assert_eq!(seconds("1.5"), Some(1500));
        assert_eq!(seconds("500ms"), Some(500));
        assert_eq!(seconds("2m"), Some(120_000));
        assert_eq!((seconds("-1"), seconds("nan"), seconds("1e300"), seconds("")), (None, None, None, None));
        let size = |text: &str| read::<ByteSize>(text).map(|size| size.0);
        assert_eq!(
            (size("64MiB"), size("512K"), size("7"), size("1g")),
            (Some(64 << 20), Some(512 << 10), Some(7), Some(1 << 30))
        );
        assert_eq!(
            (size(""), size("K"), size("99999999999999999999"), size("9999999999999G")),
            (None, None, None, None)
        );
    }

    #[test]
    fn networks_are_written_with_or_without_a_length() {
        let read =
            |text: &str| read::<Vec<IpNet>>(text).map(|nets| nets.iter().map(IpNet::to_string).collect::<Vec<_>>());
        assert_eq!(
            read("192.0.2.7/24, 10.1.2.3,::ffff:10.0.0.1,fd00::/8"),
            Some(["192.0.2.0/24", "10.1.2.3/32", "10.0.0.1/32", "fd00::/8"].map(str::to_owned).to_vec())
        );
        assert_eq!((read("10.0.0.0/33"), read("localhost"), read("")), (None, None, None));
    }

    #[test]
    fn a_negative_time_is_for_ever_and_a_file_may_have_a_scale() {
        assert_eq!(read::<KeepAlive>("-1"), Some(KeepAlive::Forever));
        assert_eq!(read::<KeepAlive>("-5m"), Some(KeepAlive::Forever));
        assert_eq!(read::<KeepAlive>("5m"), Some(KeepAlive::For(Duration::from_secs(300))));
        assert_eq!((read::<KeepAlive>("-"), read::<KeepAlive>("--1"), read::<KeepAlive>("soon")), (None, None, None));
        let lora = |path: &str, scale| Lora { path: path.into(), scale };
        assert_eq!(read::<Vec<Lora>>("a.gguf:0.5,b.gguf"), Some(vec![lora("a.gguf", 0.5), lora("b.gguf", 1.0)]));
        assert_eq!(read::<Vec<Lora>>("c:/x.gguf"), Some(vec![lora("c:/x.gguf", 1.0)]));
        assert_eq!((read::<Vec<Lora>>(""), read::<Vec<Lora>>(":1")), (None, None));
    }

    #[test]
    fn what_is_printed_is_read_again() {
        fn round<T: Written + PartialEq + std::fmt::Debug>(value: T) {
            let texts = toml_texts(&value.to_toml(), T::IS_LIST).expect("a plain value");
            assert_eq!(T::from_texts(&texts), Some(value));
        }
        round(0.7f32);
        round(ByteSize(64 << 20));
        round(ByteSize(1000));
        round(Seconds(Duration::from_millis(150)));
        round(GpuLayers::All);
        round(GpuLayers::Count(7));
        round(CacheElement(Some(KvType::Iq4Nl)));
        round(CacheElement(None));
        round(vec![SamplerKind::TopK, SamplerKind::Temperature]);
        round(vec!["a".to_owned(), "b".to_owned()]);
        round(Switch(false));
        round(KeepAlive::Forever);
        round(KeepAlive::For(Duration::ZERO));
        round(["10.0.0.0/8", "::1/128"].map(|net| net.parse::<IpNet>().expect("a network")).to_vec());
        round(vec![Lora { path: "a:b.gguf".into(), scale: 0.5 }, Lora { path: "c".into(), scale: 1.0 }]);
    }
}
