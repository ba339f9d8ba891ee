import pytest
pytestmark=[pytest.mark.ray]
def test_x(deploy, ray_cluster):
    wiki = deploy(shards=2)
    o = wiki.materialize(until="embeddings")
    print(o)
    assert 0
