//! Times of day in logs: RFC 3339, UTC, with milliseconds.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `9999-12-31T23:59:59`, the last second with a year of four digits.
const LAST: u64 = 253_402_300_799;
/// Bytes of `2026-11-24T03:05:19.`, what stays the same for a second.
const PREFIX: usize = 20;

/// Formats times; the date is worked out once a second, for the access log asks at every request.
#[derive(Default)]
pub struct Timestamp {
    second: u64,
    text: String,
}

impl Timestamp {
    pub const fn new() -> Self {
        Self { second: 0, text: String::new() }
    }

    /// E.g. `2026-11-24T03:05:19.042Z`. A clock before 1970 reads as 1970, one after 9999 as 9999.
    pub fn format(&mut self, time: SystemTime) -> &str {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let second = since.as_secs().min(LAST);
        if second == self.second && !self.text.is_empty() {
            self.text.truncate(PREFIX);
        } else {
            self.second = second;
            self.text.clear();
            let (year, month, day) = date(second / 86_400);
            let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
            let _ = write!(self.text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.");
        }
        let millis = since.subsec_millis();
        for digit in [millis / 100, millis / 10 % 10, millis % 10] {
            self.text.extend(char::from_digit(digit, 10));
        }
        self.text.push('Z');
        &self.text
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
///
/// Counted in years that begin in March, so that the leap day is the last of its year, and in eras of 400 years, after
/// which the calendar repeats.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_after_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_after_march + 2) / 5 + 1;
    let (month, next_year) =
        if months_after_march < 10 { (months_after_march + 3, 0) } else { (months_after_march - 9, 1) };
    (400 * era + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> String {
        Timestamp::new().format(UNIX_EPOCH + Duration::from_millis(millis)).to_owned()
    }

    #[test]
    fn times_read_as_rfc_3339() {
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_709_251_199_007), "2024-02-29T23:59:59.007Z");
        assert_eq!(at(1_795_489_519_042), "2026-11-24T03:05:19.042Z");
        assert_eq!(at(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(at(LAST * 1000 + 86_400_000), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn every_day_of_five_centuries_follows_the_one_before() {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..182_622 {
            assert_eq!(date(days), (year, month, day), "day {days}");
            let last = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn a_formatter_that_is_used_again_tells_the_new_time() {
        let mut timestamp = Timestamp::new();
        for (millis, text) in [
            (1_795_489_519_042, "2026-11-24T03:05:19.042Z"),
            (1_795_489_519_043, "2026-11-24T03:05:19.043Z"),
            (1_795_489_520_000, "2026-11-24T03:05:20.000Z"),
            (1_795_489_519_999, "2026-11-24T03:05:19.999Z"),
        ] {
            assert_eq!(timestamp.format(UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
