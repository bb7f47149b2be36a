//! pgvector: a PostgreSQL with vectors, by the kind `postgres`.

#![cfg(feature = "postgres")]
#![allow(missing_docs)]

mod common;
#[path = "common/vectors.rs"]
mod vectors;

use std::time::{Duration, Instant};

use common::{Stopwatch, Within, eventually, unhurried};
use resource_pool::config::PostgresConfig;
use resource_pool::{Error, Health, ResourcePool};
use services::{PgVector, Service};
use vectors::{DIMENSIONS, NEIGHBOURS, VectorSet};

/// A guard against hanging.
const SOON: Duration = Duration::from_secs(20);
/// The limit for a call to a server that stopped answering.
const FROZEN: Duration = Duration::from_secs(5);

const NEAREST: &str = "SELECT id FROM bars ORDER BY v <-> $1::real[]::vector LIMIT 10";

fn pool(server: &Service) -> ResourcePool {
    ResourcePool::builder()
        .environment([("", ""); 0])
        .options(unhurried())
        .resource(PostgresConfig::url(server.url()))
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_stored_found_replaced_and_deleted() {
    let pool = pool(PgVector::shared());
    let mut postgres = pool.postgres().within(SOON).await.unwrap();
    let version: String = sqlx::query_scalar("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        .fetch_one(&mut postgres)
        .await
        .unwrap();
    println!("pgvector {version}");
    sqlx::raw_sql("CREATE TABLE stocks (code text PRIMARY KEY, v vector(2))").execute(&mut postgres).await.unwrap();
    let upsert = "INSERT INTO stocks VALUES ($1, $2::real[]::vector) ON CONFLICT (code) DO UPDATE SET v = excluded.v";
    for (code, vector) in [("a", [1.0_f32, 0.0]), ("b", [0.0, 1.0]), ("a", [2.0, 0.0])] {
        sqlx::query(upsert).bind(code).bind(&vector[..]).execute(&mut postgres).await.unwrap();
    }
    let near = [1.5_f32, 0.0];
    let nearest = "SELECT code, v <-> $1::real[]::vector FROM stocks ORDER BY 2";
    let found: Vec<(String, f64)> = sqlx::query_as(nearest).bind(&near[..]).fetch_all(&mut postgres).await.unwrap();
    assert_eq!(found[0], ("a".to_owned(), 0.5));
    assert_eq!((&*found[1].0, found.len()), ("b", 2));
    // The vector itself comes as an array.
    let vector: Vec<f32> = sqlx::query_scalar("SELECT v::real[] FROM stocks WHERE code = $1")
        .bind("a")
        .fetch_one(&mut postgres)
        .await
        .unwrap();
    assert_eq!(vector, [2.0, 0.0]);
    let wrong = sqlx::query(upsert).bind("c").bind(&[1.0_f32][..]).execute(&mut postgres).await.unwrap_err();
    assert!(wrong.to_string().contains("expected 2 dimensions, not 1"), "{wrong}");
    sqlx::query("DELETE FROM stocks WHERE code = $1").bind("a").execute(&mut postgres).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM stocks").fetch_one(&mut postgres).await.unwrap();
    assert_eq!(left, 1);
    drop(postgres);
    assert_eq!(pool.health_check().within(SOON).await.entry("postgres").unwrap().health, Health::Pass);
    assert!(pool.close_all().within(SOON).await.all_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_ends_as_the_server_freezes_and_works_again_after_a_restart() {
    let server = PgVector::start().unwrap();
    let pool = pool(&server);
    let mut postgres = pool.postgres().within(SOON).await.unwrap();
    let table = "CREATE TABLE bars AS SELECT n AS id, ARRAY[n, 1]::vector AS v FROM generate_series(1, 100) AS n";
    sqlx::raw_sql(table).execute(&mut postgres).await.unwrap();
    server.freeze().unwrap();
    let stopwatch = Stopwatch::start();
    let search = sqlx::query_scalar::<_, i32>(NEAREST).bind(&[7.0_f32, 1.0][..]).fetch_all(&mut postgres);
    let error = search.within(SOON).await.unwrap_err();
    assert!(matches!(Error::behind(&error), Some(Error::Lost { .. })), "{error}");
    drop(postgres);
    assert!(stopwatch.took() < FROZEN, "{:?}", stopwatch.took());
    tokio::task::block_in_place(|| server.restart()).unwrap();
    let found = eventually(SOON, async || {
        let mut postgres = pool.postgres().await.ok()?;
        sqlx::query_scalar::<_, i32>(NEAREST).bind(&[7.0_f32, 1.0][..]).fetch_all(&mut postgres).await.ok()
    });
    assert_eq!(found.await[0], 7);
}

/// Without an index all vectors are looked at, so that none is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_without_an_index_is_exact() {
    let set = VectorSet::independent();
    let server = PgVector::start().unwrap();
    let pool = pool(&server);
    let mut postgres = pool.postgres().within(SOON).await.unwrap();
    let table = format!("CREATE TABLE bars (id int8, v vector({DIMENSIONS}))");
    sqlx::raw_sql(sqlx::AssertSqlSafe(table)).execute(&mut postgres).await.unwrap();
    let began = Instant::now();
    // An array of arrays is no type of sqlx's. So each batch is one array, which the server takes apart.
    let insert = "INSERT INTO bars SELECT $1 + n, ($2::real[])[n * $3 + 1:(n + 1) * $3]::vector FROM generate_series(0, $4 - 1) AS n";
    let mut first = 0_i64;
    for batch in set.vectors.chunks(100) {
        let query =
            sqlx::query(insert).bind(first).bind(batch.concat()).bind(DIMENSIONS as i32).bind(batch.len() as i32);
        query.execute(&mut postgres).await.unwrap();
        first += batch.len() as i64;
    }
    let stored = began.elapsed();
    let mut found = Vec::new();
    for query in &set.queries {
        let ids: Vec<i64> = sqlx::query_scalar(NEAREST).bind(&query[..]).fetch_all(&mut postgres).await.unwrap();
        found.push(ids.iter().map(|id| *id as usize).collect());
    }
    let asked = began.elapsed();
    let recall = set.recall(&found);
    println!(
        "{} vectors of {DIMENSIONS}: recall@{NEIGHBOURS} {recall:.4} without an index over {} queries; stored in {stored:.1?}, \
         {:.1?} for a query",
        set.vectors.len(),
        set.queries.len(),
        (asked - stored) / 100,
    );
    assert_eq!(recall, 1.0);
}
