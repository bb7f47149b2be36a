//! PostgreSQL with pgvector.

#![allow(missing_docs)]

use services::PgVector;

#[test]
fn it_has_the_extension_and_keeps_its_data_when_it_is_killed() {
    PgVector::install().unwrap();
    let server = PgVector::start().unwrap();
    let view = server.postgres().unwrap();
    println!("version {}", server.version().unwrap());
    assert!(server.version().unwrap().starts_with("18."));
    assert_eq!(view.query("SELECT '[1,2]'::vector <-> '[1,4]'").unwrap(), "2");
    view.query("CREATE TABLE bars AS SELECT '[1,2]'::vector AS v").unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    assert_eq!(view.query("SELECT v FROM bars").unwrap(), "[1,2]");
}
