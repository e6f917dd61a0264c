from refusal_index.draws import Draws


def test_seed_depends_on_seed_text_and_number_only():
    one, two = Draws(0), Draws(0)
    a, b = one.seeds(["a", "b"])
    assert two.seeds(["b"]) == [b]
    assert two.seeds(["a"]) == [a]
    assert Draws(1).seeds(["a"]) != [a]
    many = Draws(0).seeds(["a"] * 100)
    assert len(set(many)) == 100
    assert all(0 <= seed < 2**31 for seed in many)
