//! Notices to systemd, for services of `Type=notify`. Without the variable `NOTIFY_SOCKET` there is nobody to tell.

use std::io;
use std::time::Duration;

use sd_notify::{NotifyState, notify};

/// Tells systemd that the service serves.
pub(crate) fn ready() -> io::Result<()> {
    notify(&[NotifyState::Ready])
}

/// Tells systemd that the service stops, and that this may take so long.
pub(crate) fn stopping(limit: Duration) {
    let micros = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    if let Err(error) = notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]) {
        tracing::warn!(%error, "systemd was not told that this process stops; see that NOTIFY_SOCKET can be written");
    }
}
