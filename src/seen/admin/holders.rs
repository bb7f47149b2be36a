//! Holders as an admin tells them: by the lines that acquired them, without backtraces, and not too many.

use crate::Holder;
use crate::seen::admin::answer;
use crate::seen::admin::limits::{HOLDERS, HOLDERS_BYTES};

/// The first of these, at most so many. Their backtraces are left out before they are made texts, which takes long.
pub(super) fn first(mut holders: Vec<Holder>, most: usize) -> Vec<Holder> {
    holders.truncate(most);
    for holder in &mut holders {
        holder.backtrace = None;
    }
    holders
}

/// The answer of `/holders`.
pub(super) fn list(holders: Vec<Holder>) -> String {
    let mut list = "[".to_owned();
    for holder in first(holders, HOLDERS).iter().filter_map(|holder| answer::text(holder).ok()) {
        if list.len() + holder.len() > HOLDERS_BYTES {
            break;
        }
        if list.len() > 1 {
            list.push(',');
        }
        list.push_str(&holder);
    }
    list.push(']');
    list
}

#[cfg(test)]
mod tests {
    use std::backtrace::Backtrace;
    use std::panic::Location;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_list_has_lines_no_backtraces_and_bounded_bytes() {
        let name: Arc<str> = "x".repeat(HOLDERS_BYTES / 100).into();
        let mut holder = Holder::of(&name, Location::caller(), Duration::ZERO, 1);
        holder.backtrace = Some(Arc::new(Backtrace::force_capture()));
        let list = list(vec![holder; 200]);
        assert!(list.len() < HOLDERS_BYTES + 2 && list.len() > HOLDERS_BYTES / 2, "{}", list.len());
        let told: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
        assert!(told.len() < 100 && told.iter().all(|one| one["backtrace"].is_null()));
        assert!(told[0]["site"].as_str().unwrap().contains("holders.rs:"));
    }
}
