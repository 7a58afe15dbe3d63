//! Which automatic restore points to keep: fewer, the older they are.

use std::collections::HashSet;

use super::point::{Point, PointId};

/// Up to which age (in seconds) one point is kept of each stretch of so many.
const CALENDAR: [(u64, u64); 3] = [
    (3600, 600),           // for an hour, one every ten minutes
    (24 * 3600, 3600),     // for a day, one an hour
    (31 * 86_400, 86_400), // for a month, one a day
];

/// The automatic points that a schedule gives up at `now` (seconds since
/// 1970): of each stretch of the calendar the oldest one stays, so that a point
/// that is kept for its hour can be the one of its day. Never one made by
/// hand, and never the newest.
pub fn thinning(points: &[Point], now: u64) -> Vec<PointId> {
    let mut automatic: Vec<&Point> = points.iter().filter(|p| p.note.automatic).collect();
    automatic.sort_by_key(|point| point.note.created);
    let newest = automatic.last().map(|point| point.note.id);
    let mut kept = HashSet::new();
    let mut given_up = Vec::new();
    for point in automatic {
        let age = now.saturating_sub(point.note.created);
        let stretch = CALENDAR.iter().find(|(up_to, _)| age < *up_to);
        let stays = match stretch {
            Some((_, seconds)) => kept.insert((*seconds, point.note.created / seconds)),
            None => false,
        };
        if !stays && Some(point.note.id) != newest {
            given_up.push(point.note.id);
        }
    }
    given_up
}

#[cfg(test)]
mod tests {
    use super::super::point::Note;
    use super::*;

    const START: u64 = 1_800_000_000;

    fn point(created: u64, automatic: bool) -> Point {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&created.to_le_bytes());
        Point {
            note: Note {
                id: PointId(id),
                created,
                automatic,
                comment: String::new(),
            },
            stored_bytes: 0,
        }
    }

    /// A point every ten minutes for `days`, thinned each time.
    fn after(days: u64) -> Vec<u64> {
        let mut points: Vec<Point> = Vec::new();
        let end = START + days * 86_400;
        for now in (START..=end).step_by(600) {
            points.push(point(now, true));
            let given_up = thinning(&points, now);
            points.retain(|point| !given_up.contains(&point.note.id));
            assert!(points.len() < 70, "{} points", points.len());
        }
        points
            .iter()
            .map(|point| end - point.note.created)
            .collect()
    }

    #[test]
    fn a_schedule_of_months_keeps_about_sixty_points_of_all_ages() {
        let ages = after(100);
        assert!((55..70).contains(&ages.len()), "{} points", ages.len());
        let gaps = |range: std::ops::Range<u64>, most: u64| {
            let within: Vec<_> = ages.iter().filter(|age| range.contains(age)).collect();
            assert!(within.len() > 3);
            for pair in within.windows(2) {
                assert!(pair[0] - pair[1] <= most, "{pair:?}");
            }
        };
        gaps(0..3600, 600);
        gaps(0..86_400, 2 * 3600);
        gaps(0..30 * 86_400, 2 * 86_400);
        assert!(ages.iter().all(|&age| age <= 31 * 86_400));
    }

    #[test]
    fn points_made_by_hand_and_the_newest_are_never_given_up() {
        let points = [
            point(START, false),
            point(START + 1, true),
            point(START + 2, false),
            point(START + 3, true),
        ];
        let given_up = thinning(&points, START + 400 * 86_400);
        assert_eq!(given_up, [points[1].note.id]);
        assert!(thinning(&points[3..], START + 400 * 86_400).is_empty());
    }
}
