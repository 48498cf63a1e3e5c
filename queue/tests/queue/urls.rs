//! URLs that open nothing: one clear line each, without secrets.

use kiln_queue::{Options, open};

async fn refused(url: &str) -> String {
    open(url, Options::default()).await.expect_err(url).to_string()
}

#[tokio::test]
async fn an_unknown_scheme_is_told_with_those_that_are_known() {
    for (url, scheme) in
        [("amqp://me:secret@host/vhost", "amqp"), ("queue.db", ""), ("", ""), ("secret@host:1", "")]
    {
        let said = refused(url).await;
        let expected = format!(
            "queue URL with scheme '{scheme}' is not supported; use one of sqlite:///path/to/queue.db, \
             postgres://user:password@host:port/database, mysql://user:password@host:port/database, \
             redis://user:password@host:port/database, rediss://user:password@host:port/database, \
             kafka://user:password@host:port,host:port/prefix"
        );
        assert_eq!(said, expected);
    }
}
