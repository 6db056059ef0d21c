"""Common facts: each is a case among the others of its relation."""

from __future__ import annotations

from errata.data.common_facts import NEIGHBOURS, RELATIONS, cases_of, common_facts


def test_every_fact_gets_another_answer_of_its_relation_and_neighbours_without_it() -> None:
    facts = common_facts()
    cases = cases_of(facts)
    assert [fact for fact, _ in cases] == facts
    texts = {fact.text: fact for fact in facts}
    for fact, case in cases:
        assert case.request.text == fact.text and case.target_true == fact.answer
        assert case.request.target in set(fact.relation.answers.values()) - {fact.answer}
        assert all(fact.subject in text for text in (*case.paraphrases, fact.question))
        assert 0 < len(case.neighbours) <= NEIGHBOURS
        for text, answer in zip(case.neighbours, case.neighbour_answers, strict=True):
            assert texts[text].relation is fact.relation and texts[text] != fact
            assert texts[text].answer == answer != case.request.target


def test_neighbours_with_the_same_answer_come_first() -> None:
    (case,) = (case for fact, case in cases_of(common_facts()) if fact.subject == "Eiffel Tower")
    assert case.neighbours[0] == "The Louvre is located in the city of"
    assert case.neighbour_answers[:2] == ("Paris", "Berlin")


def test_a_fact_that_is_known_alone_in_its_relation_is_no_case() -> None:
    first, *others = (fact for fact in common_facts() if fact.relation is RELATIONS[0])
    assert cases_of([first]) == []
    assert [fact for fact, _ in cases_of([first, others[0]])] == []
    assert len(cases_of([first, *others[:2]])) == 3
