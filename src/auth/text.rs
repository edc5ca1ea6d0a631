//! The text of a key that the gateway made: `lgw_<id>_<secret>_<checksum>`.
//!
//! The id is public, the secret is 256 random bits in 64 hex digits, the checksum 8 hex digits of the CRC-32 (IEEE
//! 802.3, as GitHub's tokens have it) over all that stands before its `_`: secret scanners know a key from a text that
//! looks like one, and a mistyped key is refused without a look-up. Read from the right, for an id may hold `_` and `-`.
//!
//! Any other text is a key of somebody's own making, and is known by its hash alone.

const PREFIX: &str = "lgw_";
/// Hex digits.
const SECRET: usize = 64;
const CHECKSUM: usize = 8;

/// The text of the key `id` with this secret.
pub fn written(id: &str, secret: &[u8; SECRET / 2]) -> String {
    let front = format!("{PREFIX}{id}_{}", hex::encode(secret));
    let checksum = checksum(front.as_bytes());
    format!("{front}_{checksum:08x}")
}

/// True for a text that has the form of a key the gateway made, but is none: a character is wrong, missing or too many.
pub fn is_mistyped(text: &[u8]) -> bool {
    let Some((front, given)) = split_last(text) else { return false };
    let Some((start, secret)) = split_last(front) else { return false };
    // one of the two has its length; and not the `lgw` in front
    if start.len() <= PREFIX.len() || !start.starts_with(PREFIX.as_bytes()) {
        return false;
    }
    if given.len() != CHECKSUM && !(secret.len() == SECRET && secret.iter().all(u8::is_ascii_hexdigit)) {
        return false;
    }
    given != format!("{:08x}", checksum(front)).as_bytes()
}

fn split_last(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let place = memchr::memrchr(b'_', text)?;
    Some((text.get(..place)?, text.get(place + 1..)?))
}

/// CRC-32 of IEEE 802.3: reflected, polynomial 0x04C11DB7.
fn checksum(bytes: &[u8]) -> u32 {
    let mut rest = !0_u32;
    for byte in bytes {
        rest ^= u32::from(*byte);
        for _ in 0..8 {
            // the polynomial, where the bit that leaves is set
            rest = (rest >> 1) ^ (0xEDB8_8320 & (rest & 1).wrapping_neg());
        }
    }
    !rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET_BYTES: [u8; 32] = [0x5a; 32];

    #[test]
    fn the_checksum_is_the_crc_32_everybody_has() {
        assert_eq!(checksum(b"123456789"), 0xCBF4_3926);
        assert_eq!(checksum(b""), 0);
    }

    #[test]
    fn a_key_is_read_from_the_right_whatever_its_id_holds() {
        for id in ["a", "team-a", "team_a", "a_", "_", "lgw_b", "a.b", "12345678", &"5".repeat(64)] {
            let key = written(id, &SECRET_BYTES);
            assert_eq!(key.len(), PREFIX.len() + id.len() + 1 + SECRET + 1 + CHECKSUM);
            assert!(key.starts_with(&format!("lgw_{id}_5a5a")) && !is_mistyped(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn every_single_mistake_is_seen() {
        let key = written("team_a-1", &SECRET_BYTES);
        // the prefix and the marks between the parts are what makes the form
        let is_mark = |place: usize| place < PREFIX.len() || key.as_bytes()[place] == b'_';
        for place in (0..key.len()).filter(|place| !is_mark(*place)) {
            for other in ['0', 'f', 'A', '-', 'é'] {
                let mut wrong = key.clone();
                wrong.replace_range(place..=place, &other.to_string());
                assert!(wrong == key || is_mistyped(wrong.as_bytes()), "{wrong}");
            }
            let mut missing = key.clone();
            missing.remove(place);
            assert!(is_mistyped(missing.as_bytes()), "{missing}");
            let mut more = key.clone();
            more.insert(place, '7');
            assert!(is_mistyped(more.as_bytes()), "{more}");
        }
        for pair in PREFIX.len()..key.len() - 1 {
            let mut swapped = key.clone().into_bytes();
            swapped.swap(pair, pair + 1);
            let same = swapped == key.as_bytes();
            let has_form = !is_mark(pair) && !is_mark(pair + 1);
            assert!(same || !has_form || is_mistyped(&swapped), "{}", String::from_utf8_lossy(&swapped));
        }
        assert!(is_mistyped(key.to_uppercase().replace("LGW", "lgw").as_bytes()));
    }

    #[test]
    fn a_text_of_another_form_is_left_to_its_hash() {
        let secret = "5a".repeat(32);
        for text in [
            "",
            "lgw_",
            "lgw__",
            "lgw___",
            "the-key-of-team-a",
            "sk-12345678",
            "lgw_team-a_0123456789",
            "lgw_12345678",
            "lgw_a_12345678x",
            // what `keys create` made before there were checksums
            &format!("lgw_team_a_{secret}"),
            &format!("lgw_{}_{secret}", "5".repeat(64)),
            &format!("LGW_a_{secret}_00000000"),
        ] {
            assert!(!is_mistyped(text.as_bytes()), "{text}");
        }
        assert!(!is_mistyped(&[0xff; 100]));
    }
}
