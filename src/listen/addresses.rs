//! How many connections each client address has, so that none of them can take what is there for all.
//!
//! A connection costs memory for as long as its client likes to be slow: an HTTP/2 one with all its streams stalled some
//! hundred KiB. An address that has no connection costs nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of one listener, by address.
#[derive(Clone, Default)]
pub(super) struct Addresses(Arc<Mutex<HashMap<IpAddr, u32>>>);

impl Addresses {
    /// One more connection of `address`, unless it has `most` already.
    pub(super) fn take(&self, address: IpAddr, most: u32) -> Option<Place> {
        let address = whose(address);
        let mut counts = self.counts();
        let count = counts.entry(address).or_insert(0);
        // an entry just made has 0, and `most` is at least 1
        (*count < most.max(1)).then(|| {
            *count += 1;
            Place { address, all: self.clone() }
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of an address; counted off when dropped.
pub(super) struct Place {
    address: IpAddr,
    all: Addresses,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Whoever has one IPv6 address has the other 2^64 of its network too (RFC 4291 §2.5.1).
fn whose(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(addresses: &Addresses, address: &str) -> Option<Place> {
        addresses.take(address.parse().unwrap(), 2)
    }

    #[test]
    fn an_address_has_its_connections_and_no_others() {
        let addresses = Addresses::default();
        let (first, _second) = (take(&addresses, "192.0.2.1").unwrap(), take(&addresses, "192.0.2.1").unwrap());
        assert!(take(&addresses, "192.0.2.1").is_none());
        let _other = take(&addresses, "192.0.2.2").unwrap();
        drop(first);
        assert!(take(&addresses, "192.0.2.1").is_some());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let addresses = Addresses::default();
        let _held = [take(&addresses, "2001:db8::1").unwrap(), take(&addresses, "2001:db8::ffff:1").unwrap()];
        assert!(take(&addresses, "2001:db8:0:0:8000::").is_none());
        assert!(take(&addresses, "2001:db8:0:1::1").is_some());
    }

    #[test]
    fn nothing_is_kept_of_an_address_that_has_left() {
        let addresses = Addresses::default();
        let held: Vec<_> = (0..100).map(|last| take(&addresses, &format!("192.0.2.{last}")).unwrap()).collect();
        assert_eq!(addresses.counts().len(), 100);
        drop(held);
        assert!(addresses.counts().is_empty());
    }
}
