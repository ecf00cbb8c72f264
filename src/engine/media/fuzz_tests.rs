//! Files of clients, fuzzed (F13).

use super::Bitmap;
use super::decode::decode;
use crate::chat::{Media, MediaKind};
use crate::fuzz::{Shape, Target, fuzz, outcome};
use image::ImageFormat;
use std::io::Cursor;

fn picture(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 9) as u8, (y * 5) as u8, 7]));
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).expect("it is encoded");
    out.into_inner()
}

fn wav() -> Vec<u8> {
    let mut out =
        b"RIFF\x44\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data\x20\0\0\0".to_vec();
    out.extend([1; 32]);
    out
}

/// A PNG with the checksums that its chunks ask for: a decoder looks no further into one that has others.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut png = data.to_vec();
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4) {
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        let Some(checked) = png.get(at + 4..end) else { break };
        let sum = crc32fast::hash(checked).to_be_bytes();
        let Some(place) = png.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&sum);
        at = end + 4;
    }
    png
}

#[test]
fn media() {
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Bmp];
    let mut seeds: Vec<Vec<u8>> = formats.map(|format| picture(format, 9, 7)).to_vec();
    seeds.extend([picture(ImageFormat::Png, 300, 3), picture(ImageFormat::Jpeg, 64, 64), wav()]);
    let words = [
        "IHDR", "IDAT", "IEND", "PLTE", "tRNS", "acTL", "fcTL", "fdAT", "eXIf", "iCCP", "RIFF", "WEBP", "VP8 ", "VP8L",
        "VP8X", "ALPH", "ANIM", "GIF89a", "BM", "Exif\0\0", "data", "fmt ", "LIST", "fLaC", "ID3",
    ];
    let target = Target { name: "media", seeds, shape: Shape::Bytes, words: &words };
    fuzz(&target, |input| {
        let mut came = 0;
        for kind in [MediaKind::Image, MediaKind::Audio] {
            let data = if input.starts_with(b"\x89PNG") { with_checksums(input) } else { input.to_vec() };
            let decoded = decode(&Media { kind, offset: 0, data }, Some(16_000));
            came = came << 16
                ^ match decoded {
                    Ok(Bitmap::Image { width, height, rgb }) => {
                        assert_eq!(rgb.len(), 3 * width as usize * height as usize);
                        1
                    }
                    Ok(Bitmap::Sound { samples }) => {
                        assert!(!samples.is_empty());
                        2
                    }
                    Err(reason) => outcome(&reason),
                };
        }
        came
    });
}
