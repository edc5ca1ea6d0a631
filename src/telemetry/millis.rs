//! Durations as they are written in the access log and in `Server-Timing`.

use std::time::Duration;

/// So many digits has the longest, and its point.
const LONGEST: usize = 24;

/// Milliseconds to the microsecond: `12.345`. What has passed of the next microsecond is not told.
pub struct Millis {
    /// At its end.
    text: [u8; LONGEST],
    length: usize,
}

impl Millis {
    pub fn of(duration: Duration) -> Self {
        // not `as_millis`: a division of 128 bits costs more than the rest of this
        let mut whole = duration.as_secs().saturating_mul(1000).saturating_add(duration.subsec_millis().into());
        let mut micros = u64::from(duration.subsec_micros() % 1000);
        let mut millis = Self { text: [b'0'; LONGEST], length: 0 };
        for _ in 0..3 {
            millis.put_digit(&mut micros);
        }
        millis.put(b'.');
        millis.put_digit(&mut whole);
        while whole > 0 {
            millis.put_digit(&mut whole);
        }
        millis
    }

    /// Takes the last digit of `number`.
    fn put_digit(&mut self, number: &mut u64) {
        self.put(b'0' + u8::try_from(*number % 10).unwrap_or(0));
        *number /= 10;
    }

    fn put(&mut self, byte: u8) {
        self.length += 1;
        if let Some(place) = self.text.iter_mut().nth_back(self.length - 1) {
            *place = byte;
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(LONGEST - self.length..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_to_the_microsecond() {
        for (duration, text) in [
            (Duration::ZERO, "0.000"),
            (Duration::from_nanos(999), "0.000"),
            (Duration::from_micros(7), "0.007"),
            (Duration::from_micros(1_050), "1.050"),
            (Duration::from_millis(120_999), "120999.000"),
            (Duration::from_micros(9_876_543_210), "9876543.210"),
            (Duration::MAX, "18446744073709551615.999"),
        ] {
            assert_eq!(std::str::from_utf8(Millis::of(duration).as_bytes()), Ok(text));
        }
    }
}
