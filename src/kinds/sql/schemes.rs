//! The schemes of `DATABASE_URL`.

/// The schemes of `DATABASE_URL` that the kinds over sqlx read, each with the feature that has its kind, and whether that
/// feature is on.
pub(crate) const SHARED_SCHEMES: [(&str, &str, bool); 5] = [
    ("postgres", "postgres", cfg!(feature = "postgres")),
    ("postgresql", "postgres", cfg!(feature = "postgres")),
    ("mysql", "mysql", cfg!(feature = "mysql")),
    ("mariadb", "mysql", cfg!(feature = "mysql")),
    ("sqlite", "sqlite", cfg!(feature = "sqlite")),
];
