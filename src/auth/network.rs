//! Networks a key may come from, in CIDR form (RFC 4632, RFC 4291 §2.3).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

/// Why a text is no network, with the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotANetwork {
    Form,
    /// Bits are set behind the prefix; this network was probably meant.
    Meant(Network),
}

impl Network {
    /// An IPv4 address is the same one when it comes as IPv6 (`::ffff:10.0.0.1`).
    pub fn has(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(of), IpAddr::V4(address)) => (of.to_bits() ^ address.to_bits()) & mask(32, self.prefix) == 0,
            (IpAddr::V6(of), IpAddr::V6(address)) => {
                (of.to_bits() ^ address.to_bits()).checked_shr(128 - self.prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

fn mask(bits: u32, prefix: u32) -> u32 {
    u32::MAX.checked_shl(bits - prefix).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork::Form)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= bits).ok_or(NotANetwork::Form)?
            }
            Some(_) => return Err(NotANetwork::Form),
        };
        let first = match address {
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() & mask(32, prefix)).into()),
            IpAddr::V6(address) => {
                IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)).into())
            }
        };
        // no client comes as one of these
        if address.to_canonical() != address {
            return Err(NotANetwork::Form);
        }
        let network = Self { address: first, prefix };
        if first == address { Ok(network) } else { Err(NotANetwork::Meant(network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..], &["11.0.0.0", "9.255.255.255"][..]),
            ("192.0.2.7", &["192.0.2.7", "::ffff:192.0.2.7"], &["192.0.2.6", "::192.0.2.7"]),
            ("192.0.2.6/31", &["192.0.2.6", "192.0.2.7"], &["192.0.2.5", "192.0.2.8"]),
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::1", "::"]),
            ("2001:db8::/32", &["2001:db8::1", "2001:db8:ffff::"], &["2001:db9::", "10.0.0.1"]),
            ("::1", &["::1"], &["::2", "::", "127.0.0.1"]),
            ("::/0", &["::", "ffff::"], &["1.2.3.4", "::ffff:1.2.3.4"]),
        ] {
            let of: Network = network.parse().unwrap();
            for address in inside {
                assert!(of.has(address.parse().unwrap()), "{network} has {address}");
            }
            for address in outside {
                assert!(!of.has(address.parse().unwrap()), "{network} has not {address}");
            }
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0/8",
            "::/129",
            "host",
            "1.2.3.4/8/8",
            "::ffff:1.2.3.4",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork::Form), "{text}");
        }
        let Err(NotANetwork::Meant(meant)) = "10.1.2.3/8".parse::<Network>() else { panic!("bits behind the prefix") };
        assert_eq!(meant.to_string(), "10.0.0.0/8");
        let Err(NotANetwork::Meant(meant)) = "2001:db8::1/32".parse::<Network>() else { panic!("here too") };
        assert_eq!(meant.to_string(), "2001:db8::/32");
    }
}
