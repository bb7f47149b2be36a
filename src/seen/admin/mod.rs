//! Status, holders, events and verbs of a pool over HTTP, with a status page.
