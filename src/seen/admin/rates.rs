//! [`Rates`], which knows how much each address may still ask.
//!
//! Each address has three buckets: for requests, for requests with the right token, and for wrong tokens. An address whose
//! buckets are full is forgotten, and there are so many addresses at most. Those beyond share one set of buckets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::seen::admin::bucket::Bucket;

/// How many addresses are told apart.
const ADDRESSES: usize = 1024;
/// How many wrong tokens may come at once.
const WRONG: f64 = 5.0;
/// How many further wrong tokens may come in a second. A right one has to wait as long, or its answer would tell it.
const WRONG_PER_SECOND: f64 = 0.5;

/// How often full buckets are looked for at most, while there are as many addresses as are told apart.
const SWEEP: Duration = Duration::from_secs(1);

/// The buckets of all addresses.
pub(super) struct Rates {
    requests_per_second: u32,
    known: Mutex<KnownAddresses>,
}

struct KnownAddresses {
    own: HashMap<IpAddr, Buckets>,
    /// The buckets of the addresses beyond those that are told apart, and of those whose address nobody tells.
    shared: Buckets,
    /// When full buckets were last looked for.
    swept: Option<Instant>,
}

struct Buckets {
    requests: Bucket,
    /// The requests with the right token, which nobody else can use up.
    with_token: Bucket,
    wrong: Bucket,
}

impl Buckets {
    fn new(requests_per_second: u32) -> Self {
        let [requests, with_token] = [(); 2].map(|()| Bucket::of_requests(requests_per_second));
        Buckets { requests, with_token, wrong: Bucket::new(WRONG, WRONG_PER_SECOND) }
    }

    fn are_full(&mut self) -> bool {
        self.requests.is_full() && self.with_token.is_full() && self.wrong.is_full()
    }
}

impl Rates {
    pub(super) fn new(requests_per_second: u32) -> Self {
        let known = KnownAddresses { own: HashMap::new(), shared: Buckets::new(requests_per_second), swept: None };
        Rates { requests_per_second, known: Mutex::new(known) }
    }

    /// Takes one request off the number that this address may make. `false` if there is none left.
    pub(super) fn request(&self, from: Option<IpAddr>) -> bool {
        self.with(from, |buckets| buckets.requests.take())
    }

    /// Takes one request with the right token off the number that this address may make. `false` if there is none left.
    pub(super) fn request_with_token(&self, from: Option<IpAddr>) -> bool {
        self.with(from, |buckets| buckets.with_token.take())
    }

    /// Whether this address may offer a token now.
    pub(super) fn may_offer(&self, from: Option<IpAddr>) -> bool {
        self.with(from, |buckets| buckets.wrong.has_some())
    }

    /// Counts a wrong token of this address.
    pub(super) fn wrong(&self, from: Option<IpAddr>) {
        self.with(from, |buckets| buckets.wrong.take());
    }

    fn with<T>(&self, from: Option<IpAddr>, act: impl FnOnce(&mut Buckets) -> T) -> T {
        let mut known = self.known.lock();
        let KnownAddresses { own, shared, swept } = &mut *known;
        let Some(from) = from.map(network) else { return act(shared) };
        if own.len() >= ADDRESSES && !own.contains_key(&from) {
            // A sweep for each request of a flood would cost more than the request.
            if swept.is_none_or(|swept| swept.elapsed() >= SWEEP) {
                *swept = Some(Instant::now());
                own.retain(|_, buckets| !buckets.are_full());
            }
            if own.len() >= ADDRESSES {
                return act(shared);
            }
        }
        act(own.entry(from).or_insert_with(|| Buckets::new(self.requests_per_second)))
    }
}

/// The address as far as it stands for one who asks. A customer of a provider usually has the 2⁷² addresses of IPv6 that
/// begin with the same 56 bits. `::1` is this machine alone.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) if !six.is_loopback() => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() >> 72 << 72)),
        whole => whole,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn four(number: u32) -> Option<IpAddr> {
        Some(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    #[test]
    fn an_address_has_so_many_requests_and_wrong_tokens_and_another_one_has_its_own() {
        let rates = Rates::new(1);
        let [one, other] = [1, 2].map(four);
        assert_eq!([(); 3].map(|()| rates.request(one)), [true, true, false]);
        assert!(rates.request(other));
        assert_eq!([(); 3].map(|()| rates.request_with_token(one)), [true, true, false], "the token has its own");
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
            rates.request(four(number));
        }
        assert!(rates.known.lock().own.len() <= ADDRESSES);
    }

    #[test]
    fn full_buckets_are_looked_for_so_often_and_no_more() {
        let rates = Rates::new(1);
        let full = (0..ADDRESSES as u32).filter_map(four).map(|address| (address, Buckets::new(1)));
        rates.known.lock().own.extend(full);
        rates.known.lock().swept = Some(Instant::now() + Duration::from_secs(3600));
        rates.request(four(u32::MAX));
        assert_eq!(rates.known.lock().own.len(), ADDRESSES, "the last look is too near");
        rates.known.lock().swept = None;
        rates.request(four(u32::MAX));
        assert_eq!(rates.known.lock().own.len(), 1, "all of them are forgotten, and the new one is known");
    }

    #[test]
    fn a_network_of_ipv6_is_one_who_asks_and_this_machine_is_none_of_the_others() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:0:ff::1"), network("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(network("2001:db8:0:100::1"), network("2001:db8::1"));
        assert_eq!((network("::ffff:10.0.0.1"), network("::1")), ("10.0.0.1".to_owned(), "::1".to_owned()));

        let rates = Rates::new(1);
        while rates.request(None) {}
        assert!(rates.request(Some("::1".parse().unwrap())), "what nobody tells is used up, and this machine is not");
    }
}
