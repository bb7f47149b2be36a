//! A real terminal, by tmux on a socket of its own.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::clean;

/// A terminal with a shell in it. It ends with this value.
#[derive(Debug)]
pub(crate) struct Terminal {
    socket: String,
}

impl Terminal {
    /// A terminal of this size, whose shell has these variables.
    pub(crate) fn open(width: u16, height: u16, variables: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("resource-pool-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let terminal = Terminal { socket };
        let (width, height) = (width.to_string(), height.to_string());
        let mut command = terminal.tmux();
        command.envs(variables.iter().copied());
        command.args(["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, "sh"]);
        assert!(command.status().expect("tmux").success());
        terminal
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        clean(&mut command);
        command.env("LC_ALL", "C.UTF-8").args(["-u", "-L", &self.socket]);
        command
    }

    fn does(&self, arguments: &[&str]) -> String {
        let output = self.tmux().args(arguments).output().expect("tmux");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line of text.
    pub(crate) fn enter(&self, text: &str) {
        self.keys(&["-l", text]);
        self.keys(&["Enter"]);
    }

    /// Presses keys, by tmux's names.
    pub(crate) fn keys(&self, keys: &[&str]) {
        self.does(&[&["send-keys"], keys].concat());
    }

    /// The lines of the screen.
    pub(crate) fn screen(&self) -> Vec<String> {
        self.does(&["capture-pane", "-p"]).lines().map(str::to_owned).collect()
    }

    /// The text of the screen.
    pub(crate) fn text(&self) -> String {
        self.screen().join("\n")
    }

    /// The text with the sequences of colours.
    pub(crate) fn colours(&self) -> String {
        self.does(&["capture-pane", "-p", "-e"])
    }

    /// Changes the size.
    pub(crate) fn resize(&self, width: u16, height: u16) {
        self.does(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").status();
    }
}
