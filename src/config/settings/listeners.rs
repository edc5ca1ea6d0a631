//! Listeners and the admin listener: addresses that can all be bound, certificates that can be read.

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Check, HOUR, MILLISECOND};
use crate::admin;
use crate::config::raw;
use crate::listen::{CertificateFiles, ConnectionLimits, Settings, TlsCertificates, TlsSettings, TlsVersion};

/// Days before its end in which a certificate is warned of.
const SOON: i64 = 14;

impl Check {
    pub(super) fn listeners(&mut self, listeners: Vec<raw::Listener>) -> Vec<Settings> {
        if listeners.is_empty() {
            self.problem("listeners", "there is none; add e.g. - address: 0.0.0.0:8283");
        }
        let mut settings: Vec<Settings> = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let Some(listener) = self.listener(&format!("listeners[{index}]"), listener) else { continue };
            if let Some(other) = settings.iter().position(|other| overlap(other.address, listener.address)) {
                let address = listener.address;
                self.problem(
                    &format!("listeners[{index}].address"),
                    format_args!("{address} is taken by listeners[{other}] already; choose another port"),
                );
            }
            settings.push(listener);
        }
        settings
    }

    fn listener(&mut self, path: &str, listener: raw::Listener) -> Option<Settings> {
        let raw::Listener {
            address,
            tls,
            max_connections,
            max_connections_per_address,
            handshake_timeout,
            header_timeout,
            idle_timeout,
            write_timeout,
            max_header_size,
            max_streams,
        } = listener;
        let at = |name: &str| format!("{path}.{name}");
        let limits = ConnectionLimits {
            max_connections: self.count(&at("max_connections"), max_connections, 1..=1_000_000),
            max_connections_per_address: self.count(
                &at("max_connections_per_address"),
                max_connections_per_address,
                1..=1_000_000,
            ),
            handshake_timeout: self.duration(&at("handshake_timeout"), handshake_timeout, MILLISECOND..=HOUR),
            header_timeout: self.duration(&at("header_timeout"), header_timeout, MILLISECOND..=HOUR),
            idle_timeout: self.duration(&at("idle_timeout"), idle_timeout, MILLISECOND..=HOUR),
            write_timeout: self.duration(&at("write_timeout"), write_timeout, MILLISECOND..=HOUR),
            // hyper's buffer for a head has 8 KiB at least
            max_header_bytes: u32::try_from(self.size(&at("max_header_size"), max_header_size, 8 << 10..=1 << 20))
                .unwrap_or(u32::MAX),
            max_streams: self.count(&at("max_streams"), max_streams, 1..=10_000),
        };
        let tls = tls.map(|tls| self.tls(&at("tls"), tls));
        let address = self.required(path, "address", address)?;
        Some(Settings { address: self.address(&at("address"), &address)?, tls, limits })
    }

    fn address(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let fix = "write an IP address and a port, e.g. 0.0.0.0:8283 or [::1]:8283";
            self.problem(path, format_args!("\"{text}\" cannot be listened on; {fix}"));
        }
        address
    }

    fn tls(&mut self, path: &str, tls: raw::Tls) -> TlsSettings {
        let raw::Tls { cert_file, key_file, certificates, min_version } = tls;
        let mut files = Vec::new();
        if cert_file.is_some() || key_file.is_some() {
            files.extend(self.certificate(path, raw::Certificate { cert_file, key_file }));
        } else if certificates.is_empty() {
            self.problem(path, "there is no certificate; give cert_file and key_file, or certificates");
        }
        for (index, certificate) in certificates.into_iter().enumerate() {
            files.extend(self.certificate(&format!("{path}.certificates[{index}]"), certificate));
        }
        let min_version = match min_version {
            raw::TlsVersion::V1_2 => TlsVersion::V1_2,
            raw::TlsVersion::V1_3 => TlsVersion::V1_3,
        };
        TlsSettings { certificates: files, min_version }
    }

    fn certificate(&mut self, path: &str, certificate: raw::Certificate) -> Option<CertificateFiles> {
        let raw::Certificate { cert_file, key_file } = certificate;
        let cert_file = self.required(path, "cert_file", cert_file);
        let key_file = self.required(path, "key_file", key_file);
        let cert_file = cert_file.and_then(|file| self.pem(&format!("{path}.cert_file"), file));
        let key_file = key_file.and_then(|file| self.pem(&format!("{path}.key_file"), file));
        let files = CertificateFiles { cert_file: cert_file?, key_file: key_file? };
        self.pair(path, &files);
        Some(files)
    }

    /// Whether the two files make a certificate that can be served, and for how long still.
    fn pair(&mut self, path: &str, files: &CertificateFiles) {
        let alone = TlsSettings { certificates: vec![files.clone()], min_version: TlsVersion::V1_2 };
        let loaded = match TlsCertificates::load(&alone) {
            Ok(loaded) => loaded,
            Err(why) => return self.problem(path, why),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        for (name, ends) in loaded.expiry() {
            let days = ends.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX)).div_euclid(24 * 3600);
            if days < 0 {
                self.warn(path, format_args!("the certificate of {name} has expired; clients refuse it, renew it"));
            } else if days < SOON {
                self.warn(path, format_args!("the certificate of {name} expires in {days} days; renew it"));
            }
        }
    }

    pub(super) fn admin(&mut self, admin: raw::Admin, listeners: &[Settings]) -> Option<admin::Settings> {
        let raw::Admin { address } = admin;
        if address == "none" {
            return None;
        }
        let address = self.address("admin.address", &address)?;
        if listeners.iter().any(|listener| overlap(listener.address, address)) {
            let text = format_args!(
                "{address} is a listener's address too; choose another port, for metrics are not for clients"
            );
            self.problem("admin.address", text);
        }
        Some(admin::Settings { address })
    }
}

/// Whether the second could not be bound after the first. Port 0 is another one each time.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // the any-address of IPv6 takes IPv4 too
    let covers = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let same_ip = one.ip() == other.ip() || covers(one.ip(), other.ip()) || covers(other.ip(), one.ip());
    one.port() != 0 && one.port() == other.port() && same_ip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_where_the_second_could_not_be_bound() {
        for (one, other, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("[::]:1", "[::1]:1", true),
            ("[::]:1", "0.0.0.0:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::1]:1", "0.0.0.0:1", false),
            ("0.0.0.0:1", "0.0.0.0:2", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
        ] {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((overlap(one, other), overlap(other, one)), (expected, expected), "{one} {other}");
        }
    }
}
