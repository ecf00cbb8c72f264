//! Files that clients send, as pixels and samples. Pure Rust: hostile files are the rule here, and nothing of them reaches
//! C++ but numbers.

use super::{FILE_BYTES_MAX, PIXELS_MAX, SECONDS_MAX, SIDE_MAX};
use crate::chat::{Media, MediaKind};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error as SoundError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

/// What a projector takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Bitmap {
    /// RGB, 3 × width × height bytes, row by row.
    Image { width: u32, height: u32, rgb: Vec<u8> },
    /// Mono, at the rate that was asked for; not empty.
    Sound { samples: Vec<f32> },
}

/// Memory that decoding one image may take beside its pixels.
const DECODE_BYTES_MAX: u64 = 512 << 20;
/// Chunks of a PNG: its decoder takes its time for each, also for an empty one. Encoders write some thousands for the
/// largest file.
const PNG_CHUNKS_MAX: usize = 16_384;
/// Sample rates that are read.
const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;
/// Samples of a sound before it is resampled: `SECONDS_MAX` at 96 kHz.
const SAMPLES_MAX: usize = SECONDS_MAX as usize * 96_000;

/// `audio_rate`: the projector's, where it takes sound. Errors: the reason, as the end of a sentence.
pub(super) fn decode(media: &Media, audio_rate: Option<u32>) -> Result<Bitmap, String> {
    if media.data.len() > FILE_BYTES_MAX {
        return Err(format!("it has {} bytes, at most {FILE_BYTES_MAX} are taken", media.data.len()));
    }
    match media.kind {
        MediaKind::Image => image(&media.data),
        MediaKind::RemoteImage => Err("its address was not resolved".into()),
        MediaKind::Audio => {
            let rate = audio_rate.ok_or("the projector takes no sound")?;
            let (samples, from) = sound(&media.data)?;
            Ok(Bitmap::Sound { samples: resample(samples, from, rate) })
        }
    }
}

fn image(data: &[u8]) -> Result<Bitmap, String> {
    let mut reader = ImageReader::new(Cursor::new(data)).with_guessed_format().map_err(|error| error.to_string())?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::WebP | ImageFormat::Bmp) => {}
        _ => return Err("it is no PNG, JPEG, WebP, GIF or BMP".into()),
    }
    if reader.format() == Some(ImageFormat::Png) && png_chunks(data).nth(PNG_CHUNKS_MAX).is_some() {
        return Err(format!("it has more than {PNG_CHUNKS_MAX} chunks"));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    let n_pixels = u64::from(width) * u64::from(height);
    if n_pixels == 0 || n_pixels > PIXELS_MAX {
        return Err(format!("it has {width} × {height} pixels, 1 to {PIXELS_MAX} are taken"));
    }
    let orientation = decoder.orientation().ok();
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    // Cameras write the picture as the sensor saw it and note which side is up.
    if let Some(orientation) = orientation {
        decoded.apply_orientation(orientation);
    }
    let rgb = decoded.into_rgb8();
    Ok(Bitmap::Image { width: rgb.width(), height: rgb.height(), rgb: rgb.into_raw() })
}

/// Lengths of a PNG's chunks, as far as they can be followed. Source: the PNG specification, 5.3.
fn png_chunks(data: &[u8]) -> impl Iterator<Item = usize> {
    const SIGNATURE: usize = 8;
    /// Length, type and checksum.
    const FRAME: usize = 12;
    let mut at = SIGNATURE;
    std::iter::from_fn(move || {
        let length = data.get(at..at.checked_add(4)?)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        at = at.checked_add(FRAME)?.checked_add(length)?;
        Some(length)
    })
}

/// (mono samples, their rate).
fn sound(data: &[u8]) -> Result<(Vec<f32>, u32), String> {
    let source = MediaSourceStream::new(Box::new(Cursor::new(data.to_vec())), Default::default());
    let (format, meta) = (FormatOptions::default(), MetadataOptions::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), source, format, meta)
        .map_err(|_| "it is no WAV, MP3 or FLAC")?;
    let track = format.default_track(TrackType::Audio).ok_or("it holds no sound")?;
    let id = track.id;
    let params = track.codec_params.as_ref().and_then(|params| params.audio()).ok_or("it holds no sound")?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|error| error.to_string())?;
    let (mut mono, mut rate, mut frames): (Vec<f32>, u32, Vec<f32>) = (Vec::new(), 0, Vec::new());
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) if packet.track_id == id => packet,
            Ok(Some(_)) => continue,
            Ok(None) => break,
            // What was cut off is heard as far as it goes.
            Err(SoundError::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.to_string()),
        };
        let decoded = match decoder.decode(&packet) {
            Ok(decoded) => decoded,
            // A broken frame is skipped, as players do.
            Err(SoundError::DecodeError(_)) => continue,
            Err(error) => return Err(error.to_string()),
        };
        let n_channels = decoded.spec().channels().count().max(1);
        let rate_here = decoded.spec().rate();
        if !RATES.contains(&rate_here) || (rate != 0 && rate != rate_here) {
            return Err(format!("its sample rate ({rate_here}) is not supported"));
        }
        rate = rate_here;
        decoded.copy_to_vec_interleaved(&mut frames);
        mono.extend(frames.chunks_exact(n_channels).map(|frame| frame.iter().sum::<f32>() / n_channels as f32));
        if mono.len() > SAMPLES_MAX.min(SECONDS_MAX as usize * rate as usize) {
            return Err(format!("it is longer than {SECONDS_MAX} seconds"));
        }
    }
    if mono.len() < 2 {
        return Err("it holds no sound".into());
    }
    // A float file may hold anything.
    mono.iter_mut().for_each(|sample| *sample = if sample.is_finite() { sample.clamp(-4.0, 4.0) } else { 0.0 });
    Ok((mono, rate))
}

/// Zero crossings of the low-pass on each side.
const CROSSINGS: f64 = 16.0;

/// Band-limited: a sinc under a Hann window, cut off below the lower rate's half.
fn resample(samples: Vec<f32>, from: u32, to: u32) -> Vec<f32> {
    if from == to {
        return samples;
    }
    let divisor = gcd(from, to);
    let (n_phases, step) = (u64::from(to / divisor), u64::from(from / divisor));
    let cutoff = (f64::from(to) / f64::from(from)).min(1.0);
    #[allow(clippy::cast_sign_loss)] // at least CROSSINGS
    let reach = (CROSSINGS / cutoff).ceil() as usize;
    // One filter for each place that an output sample can have between two input samples.
    let filters: Vec<Vec<f32>> =
        (0..n_phases).map(|phase| filter(phase as f64 / n_phases as f64, cutoff, reach)).collect();
    let n_out = (samples.len() as u64 * n_phases / step).max(2);
    (0..n_out)
        .map(|index| {
            let at = index * step;
            let (center, phase) = ((at / n_phases) as usize, (at % n_phases) as usize);
            // Taps are input samples center - reach + 1 ..= center + reach; outside it is silent.
            let skipped = (reach - 1).saturating_sub(center);
            let start = (center + 1).saturating_sub(reach);
            let taps = filters[phase].iter().skip(skipped);
            samples.get(start..).unwrap_or_default().iter().zip(taps).map(|(sample, tap)| sample * tap).sum()
        })
        .collect()
}

/// Taps for an output sample that lies `fraction` behind an input sample.
fn filter(fraction: f64, cutoff: f64, reach: usize) -> Vec<f32> {
    let tap = |index: usize| {
        let distance = index as f64 - (reach as f64 - 1.0) - fraction;
        let x = std::f64::consts::PI * distance * cutoff;
        let sinc = if x.abs() < 1e-9 { 1.0 } else { x.sin() / x };
        let window = 0.5
            + 0.5
                * (std::f64::consts::PI * distance / reach as f64)
                    .clamp(-std::f64::consts::PI, std::f64::consts::PI)
                    .cos();
        sinc * window
    };
    let taps: Vec<f64> = (0..2 * reach).map(tap).collect();
    // Silence and constant tones come out as they went in.
    let sum: f64 = taps.iter().sum();
    taps.iter().map(|tap| (tap / sum) as f32).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(kind: MediaKind, data: Vec<u8>) -> Media {
        Media { kind, offset: 0, data }
    }

    fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).expect("encodes");
        out.into_inner()
    }

    fn wav(rate: u32, samples: &[i16]) -> Vec<u8> {
        let n = samples.len() as u32 * 2;
        let mut out = b"RIFF".to_vec();
        out.extend((36 + n).to_le_bytes());
        out.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
        out.extend(rate.to_le_bytes());
        out.extend((rate * 2).to_le_bytes());
        out.extend(b"\x02\0\x10\0data");
        out.extend(n.to_le_bytes());
        out.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
        out
    }

    #[test]
    fn images_of_every_format_become_pixels() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
            let data = encoded(format, 9, 5);
            match decode(&media(MediaKind::Image, data), None) {
                Ok(Bitmap::Image { width: 9, height: 5, rgb }) => assert_eq!(rgb.len(), 3 * 45, "{format:?}"),
                other => panic!("{format:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_png_of_a_million_chunks_is_not_begun() {
        let whole = encoded(ImageFormat::Png, 2, 2);
        assert_eq!(png_chunks(&whole).count(), 3, "IHDR, IDAT and IEND");
        let mut many = whole[..33].to_vec();
        many.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e".repeat(20_000));
        many.extend(&whole[33..]);
        let refused = decode(&media(MediaKind::Image, many), None).unwrap_err();
        assert_eq!(refused, "it has more than 16384 chunks");
        assert_eq!(png_chunks(&[0; 10]).count(), 0);
        assert_eq!(png_chunks(&[0xff; 30]).count(), 1, "a length that leads out of the file is the last");
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_reason() {
        let png = encoded(ImageFormat::Png, 64, 64);
        let cut = png[..png.len() / 2].to_vec();
        let mut huge = png;
        huge[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]); // 20,000 × 20,000 in the header
        for data in [Vec::new(), b"hello".to_vec(), cut, huge, b"RIFF\0\0\0\0WEBPVP8 ".to_vec(), b"GIF89a".to_vec()] {
            let n = data.len();
            assert!(decode(&media(MediaKind::Image, data), None).is_err(), "{n} bytes");
        }
        for data in [Vec::new(), b"RIFF".to_vec(), wav(1000, &[1; 50]), wav(16_000, &[])] {
            assert!(decode(&media(MediaKind::Audio, data), Some(16_000)).is_err());
        }
    }

    #[test]
    fn sound_keeps_its_tone_at_another_rate() {
        let tone = |rate: u32| -> Vec<i16> {
            (0..rate)
                .map(|i| ((f64::from(i) / f64::from(rate) * 440.0 * std::f64::consts::TAU).sin() * 16_000.0) as i16)
                .collect()
        };
        for rate in [8_000, 16_000, 22_050, 44_100, 48_000] {
            let decoded = decode(&media(MediaKind::Audio, wav(rate, &tone(rate))), Some(16_000));
            let Ok(Bitmap::Sound { samples }) = decoded else { panic!("{rate}: {decoded:?}") };
            assert!(samples.len().abs_diff(16_000) <= 2, "{rate}: {} samples", samples.len());
            // Away from the ends it is the same wave.
            let worst = (1000..15_000)
                .map(|i| {
                    let wanted = (i as f64 / 16_000.0 * 440.0 * std::f64::consts::TAU).sin() * 16_000.0 / 32_768.0;
                    (f64::from(samples[i]) - wanted).abs()
                })
                .fold(0.0, f64::max);
            assert!(worst < 0.01, "{rate}: off by {worst}");
        }
    }
}
