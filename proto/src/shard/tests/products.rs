//! Products whose rules change while clients are there, and products that come to be known.

use super::*;

fn learn(mesh: &mut Mesh, rules: ProductRules) {
    let rules = Arc::new(rules);
    for at in mesh.shards.keys().copied().collect::<Vec<_>>() {
        mesh.input(at, Input::Products(vec![rules.clone()]));
    }
    mesh.rules = rules;
    mesh.settle();
}

#[test]
fn new_rules_are_for_clients_that_are_there_too() {
    let mut mesh = Mesh::new(3, 2);
    let a = mesh.client((0, 1), "alice");
    mesh.ask(a, "421[\"join\",\"r\"]");
    assert!(mesh.ask(a, "422[\"publish\",\"r\",\"e\"]").last().unwrap().contains("\"ok\":true"));
    learn(&mut mesh, ProductRules { publish: PublishRule::Nobody, ..ProductRules::open("chat") });
    assert!(mesh.ask(a, "423[\"publish\",\"r\",\"e\"]").last().unwrap().contains("forbidden"));
    assert_eq!(mesh.closed(a), None);
}

#[test]
fn a_new_product_takes_clients_and_the_old_one_keeps_its_own() {
    let mut mesh = Mesh::new(2, 2);
    let old = mesh.client((0, 0), "alice");
    mesh.ask(old, "421[\"join\",\"r\"]");
    learn(&mut mesh, ProductRules { durable: false, ..ProductRules::open("game") });
    let new = mesh.client((1, 0), "alice");
    mesh.ask(new, "421[\"join\",\"r\"]");
    assert!(mesh.ask(new, "422[\"publish\",\"r\",\"e\"]").last().unwrap().contains("\"ok\":true"));
    assert!(mesh.take(old).is_empty(), "another product's room of the same name");
    assert!(mesh.ask(old, "422[\"publish\",\"r\",\"e\"]").last().unwrap().contains("\"ok\":true"));
}
