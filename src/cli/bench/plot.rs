//! The report as a picture: throughput over streams, then every other figure as bars of the best target's.

use super::report::{Entry, Report, Row, Sense};
use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea as _};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color as _, IntoFont as _, RGBColor, WHITE};
use std::path::Path;

/// Told apart without colour vision too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];
const WIDTH: i32 = 960;
const SWEEP_HEIGHT: i32 = 360;
const BAR_HEIGHT: i32 = 16;
const TITLE_HEIGHT: i32 = 30;
const LABEL_WIDTH: i32 = 360;
const LEGEND_WIDTH: usize = 130;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes `path`.
pub(super) fn draw(report: &Report, path: &Path) -> Result<()> {
    let rows: Vec<&Row> = report.entries.iter().flat_map(|entry| &entry.rows).collect();
    let sweep: Vec<&Row> = rows.iter().copied().filter(|row| is_rate_of_sweep(row)).collect();
    let bars: Vec<(Option<&str>, &Row)> = report.entries.iter().flat_map(titled).collect();
    let group = (0..report.targets.len()).map(|_| BAR_HEIGHT).sum::<i32>() + 6;
    let top = if sweep.len() > 1 { SWEEP_HEIGHT } else { 0 };
    let heights = bars.iter().map(|(title, _)| group + title.map_or(0, |_| TITLE_HEIGHT));
    let height = top + 70 + heights.sum::<i32>();
    let root = SVGBackend::new(path, (WIDTH.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
    let failed = |error| anyhow!("{error}");
    root.fill(&WHITE).map_err(|error| failed(error.to_string()))?;
    let (above, below) = root.split_vertically(top);
    if sweep.len() > 1 {
        lines(&above, report, &sweep).map_err(failed)?;
    }
    columns(&below, report, &bars, group).map_err(failed)?;
    root.present().map_err(|error| failed(error.to_string()))
}

/// A scenario's rows, its title with the first of them.
fn titled(entry: &Entry) -> Vec<(Option<&str>, &Row)> {
    let rows = entry.rows.iter().filter(|row| !is_rate_of_sweep(row)).enumerate();
    rows.map(|(at, row)| ((at == 0).then_some(entry.scenario.title()), row)).collect()
}

fn is_rate_of_sweep(row: &Row) -> bool {
    row.figure.n_streams.is_some() && row.figure.sense == Sense::More
}

fn colour(target: usize) -> RGBColor {
    COLOURS[target % COLOURS.len()]
}

fn lines(area: &Area<'_>, report: &Report, rows: &[&Row]) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let points = |target: usize| {
        rows.iter().filter_map(move |row| {
            let value = row.median(target);
            (!value.is_nan()).then_some((f64::from(row.figure.n_streams?), value))
        })
    };
    let all: Vec<(f64, f64)> = (0..report.targets.len()).flat_map(points).collect();
    let right = all.iter().map(|point| point.0).fold(1.0, f64::max);
    let top = all.iter().map(|point| point.1).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("prompt + generated tokens per second, over streams at once", ("sans-serif", 18))
        .margin(16)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.1)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("streams")
        .y_desc("token/s")
        .draw()
        .map_err(|error| failed(&error))?;
    for (target, name) in report.targets.iter().enumerate() {
        let colour = colour(target);
        chart
            .draw_series(LineSeries::new(points(target), colour.stroke_width(2)))
            .map_err(|error| failed(&error))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart
            .draw_series(points(target).map(|point| Circle::new(point, 4, colour.filled())))
            .map_err(|error| failed(&error))?;
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw().map_err(|error| failed(&error))
}

/// Each figure's bars are in proportion to each other; figures of unlike units are not.
fn columns(area: &Area<'_>, report: &Report, bars: &[(Option<&str>, &Row)], group: i32) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let font = || ("sans-serif", 13).into_font();
    let text = |at: (i32, i32), words: String| area.draw(&Text::new(words, at, font())).map_err(|error| failed(&error));
    for ((target, name), left) in report.targets.iter().enumerate().zip((20..).step_by(LEGEND_WIDTH)) {
        let square = Rectangle::new([(left, 14), (left + 12, 26)], colour(target).filled());
        area.draw(&square).map_err(|error| failed(&error))?;
        text((left + 18, 13), name.clone())?;
    }
    let room = f64::from(WIDTH - LABEL_WIDTH - 110);
    text((WIDTH - 140, 13), "↓ less is better".to_owned())?;
    let mut top = 38;
    for (title, row) in bars {
        if let Some(title) = title {
            text((20, top + 10), (*title).to_owned())?;
            top += TITLE_HEIGHT;
        }
        let arrow = if row.figure.sense == Sense::Less { " ↓" } else { "" };
        text((36, top), format!("{}{arrow}", row.figure.label()))?;
        let longest = (0..report.targets.len()).map(|target| row.median(target)).fold(0.0, f64::max);
        let mut y = top - BAR_HEIGHT;
        for target in 0..report.targets.len() {
            y += BAR_HEIGHT;
            let value = row.median(target);
            if value.is_nan() || longest <= 0.0 {
                text((LABEL_WIDTH, y), "not measured".to_owned())?;
                continue;
            }
            let right = LABEL_WIDTH + (room * value / longest) as i32;
            let bar = Rectangle::new([(LABEL_WIDTH, y), (right, y + BAR_HEIGHT - 3)], colour(target).filled());
            area.draw(&bar).map_err(|error| failed(&error))?;
            text((right + 6, y), super::report::shown(value))?;
        }
        top += group;
    }
    Ok(())
}
