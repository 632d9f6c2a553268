"""The curriculum's items and where they are taught."""

from conftest import REPOSITORY, Book

from course import curriculum


def test_the_curriculum_has_all_its_items():
    names = [name for topic in curriculum.items().values() for name in topic]
    assert len(names) == len(set(names)) == 329


def test_the_finished_lessons_cover_their_topics_whole():
    book = Book(REPOSITORY)
    done = book.run("curriculum", "T", "A", "H", "--require")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 open" in done.stdout


def test_open_items_are_listed(executed_book: Book):
    done = executed_book.run("curriculum", "--open")
    assert "1 of 2 items covered, 1 open" in done.stdout
    assert "T-02   —  Something that no lesson teaches" in done.stdout
    assert executed_book.run("curriculum", "--require").returncode == 2


def test_a_section_that_does_not_exist_is_found(book: Book):
    book.edit("chapters/tiny.md", "what-a-number-is: [T-01]", "what-a-word-is: [T-01]")
    done = book.run("curriculum")
    assert done.returncode == 2
    assert "names the section `what-a-word-is`, which the page does not have" in done.stderr


def test_an_item_that_does_not_exist_is_found(book: Book):
    book.edit("chapters/tiny.md", "[T-01]", "[T-77]")
    assert "names T-77, which chapters/curriculum.yml does not have" in book.run("curriculum").stderr
