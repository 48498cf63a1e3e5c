//! The way to the server encrypted and the server proven by its certificate.

use kiln_api::Catalog;
use kiln_testkit::Port;
use kiln_testkit::mariadb::Server;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sqlx::Executor;

#[tokio::test]
async fn a_server_is_believed_only_with_a_certificate_of_the_named_authority() {
    let mut server = Server::start().await;
    let mut admin = server.connect("mysql").await.expect("the server answers");
    for sql in
        ["CREATE DATABASE kiln", "CREATE USER kiln IDENTIFIED BY 'secret'", "GRANT ALL ON kiln.* TO kiln"]
    {
        admin.execute(sql).await.expect("it is made");
    }
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).expect("a certificate");
    let stranger = CertificateParams::default().self_signed(&key).expect("a certificate");
    server.stop();
    let port = Port::take();
    let number = port.number();
    server.begin_with_tls(&certificate.pem(), &key.serialize_pem(), number).await;

    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, pem: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path.display().to_string()
    };
    let (trusted, other) = (file("ca.pem", authority.pem()), file("other.pem", stranger.pem()));
    let url = |host: &str, root: &str| {
        format!("mysql://kiln:secret@{host}:{number}/kiln?ssl-mode=VERIFY_IDENTITY&ssl-ca={root}")
    };
    let catalog = Catalog::open(&url("localhost", &trusted)).await.expect("it is believed");
    catalog.snapshot().await.expect("a snapshot");
    catalog.close().await;
    for (host, root) in [("localhost", &other), ("127.0.0.1", &trusted)] {
        let error = Catalog::open(&url(host, root)).await.expect_err("it is not believed").to_string();
        assert!(
            error.contains("check user, password, database and sslmode") && !error.contains("secret"),
            "{error}"
        );
    }
}
