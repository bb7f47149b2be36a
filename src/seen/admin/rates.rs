//! How much each address may still ask.
//!
//! Each address has two buckets: one for requests, one for wrong tokens. An address whose buckets are full is forgotten,
//! and there are so many addresses at most. Those beyond share one pair of buckets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;

use crate::seen::admin::bucket::Bucket;

/// How many addresses are told apart.
const ADDRESSES: usize = 1024;
/// How many wrong tokens may come at once.
const WRONG: f64 = 5.0;
/// How many further wrong tokens may come in a second. A right one has to wait as long, or its answer would tell it.
const WRONG_PER_SECOND: f64 = 0.5;

/// The buckets of all addresses.
pub(super) struct Rates {
    requests_per_second: u32,
    buckets: Mutex<HashMap<IpAddr, Buckets>>,
}

struct Buckets {
    requests: Bucket,
    wrong: Bucket,
}

impl Rates {
    pub(super) fn new(requests_per_second: u32) -> Self {
        Rates { requests_per_second, buckets: Mutex::default() }
    }

    /// Takes one request off the number that this address may make. `false` if there is none left.
    pub(super) fn request(&self, from: IpAddr) -> bool {
        self.with(from, |buckets| buckets.requests.take())
    }

    /// Whether this address may offer a token now.
    pub(super) fn may_offer(&self, from: IpAddr) -> bool {
        self.with(from, |buckets| buckets.wrong.has_some())
    }

    /// Counts a wrong token of this address.
    pub(super) fn wrong(&self, from: IpAddr) {
        self.with(from, |buckets| buckets.wrong.take());
    }

    fn with<T>(&self, from: IpAddr, act: impl FnOnce(&mut Buckets) -> T) -> T {
        let mut buckets = self.buckets.lock();
        let mut from = network(from);
        if buckets.len() >= ADDRESSES && !buckets.contains_key(&from) {
            buckets.retain(|_, buckets| !(buckets.requests.is_full() && buckets.wrong.is_full()));
            if buckets.len() >= ADDRESSES {
                from = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        act(buckets.entry(from).or_insert_with(|| Buckets {
            requests: Bucket::of_requests(self.requests_per_second),
            wrong: Bucket::new(WRONG, WRONG_PER_SECOND),
        }))
    }
}

/// The address as far as it stands for one who asks. Somebody with one address of IPv6 has the 2⁶⁴ beside it, too.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
        four => four,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_has_so_many_requests_and_wrong_tokens_and_another_one_has_its_own() {
        let rates = Rates::new(1);
        let [one, other] = [1, 2].map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        assert_eq!([(); 3].map(|()| rates.request(one)), [true, true, false]);
        assert!(rates.request(other));
        for _ in 0..5 {
            assert!(rates.may_offer(one));
            rates.wrong(one);
        }
        assert!(!rates.may_offer(one) && rates.may_offer(other));
    }

    #[test]
    fn many_addresses_take_bounded_room() {
        let rates = Rates::new(1);
        for number in 0..3 * ADDRESSES as u32 {
            rates.request(IpAddr::V4(Ipv4Addr::from_bits(number)));
        }
        assert!(rates.buckets.lock().len() <= ADDRESSES + 1);
        let six = |low: u64| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | u128::from(low)));
        assert_eq!(network(six(1)), network(six(u64::MAX)));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    }
}
