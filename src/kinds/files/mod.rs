//! Open files, and temporary files and folders.

mod open_file;
mod temp;
mod temp_folder;
mod turns;
mod writer;

pub use self::open_file::OpenFile;
pub use self::temp::{TempDir, TempFile};
pub use self::temp_folder::{TempFolder, TempRoot};
pub use self::writer::FileWriter;
