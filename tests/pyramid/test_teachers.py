"""Teachers: scores of words, words that say a clip together, regions."""

import itertools

import made_models
import pytest
import torch
from transformers import CLIPModel

from pyramid.teachers import ClipTeacher, TextTeacher, matching_pursuit, min_max, text
from pyramid.text_encoder import TextEncoder
from pyramid.vocabulary import build_word_table
from pyramid.words import WordTable


@pytest.fixture(scope="module")
def table():
    return WordTable.load()


def named(table, ids):
    return [table.words[i] for i in ids]


def test_scores_run_from_zero_to_one():
    scores = min_max(torch.tensor([[1.0, 3.0, 2.0], [-1.0, -1.0, -1.0]]))
    assert torch.equal(scores, torch.tensor([[0, 1, 0.5], [0, 0, 0]]))


def test_pursuit_finds_what_a_sum_is_made_of():
    """Orthogonal atoms: exactly those with positive parts, the largest first, none twice."""
    words = torch.eye(6)
    target = torch.tensor([0.1, 0, 3.0, -5.0, 1.0, 0])
    assert matching_pursuit(target, words, 5) == [2, 4, 0]
    assert matching_pursuit(target, words, 2) == [2, 4]
    assert matching_pursuit(torch.zeros(6), words, 3) == []


def test_pursuit_takes_what_is_still_missing():
    """Two words alike and one apart: the best two are not the two that score highest."""
    words = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    target = torch.tensor([1.0, 0.4])
    assert matching_pursuit(target, words, 2) == [1, 2]
    assert (words @ target).topk(2).indices.tolist() == [1, 0]


# -------------------------------------------------------------------------------------------- texts


def test_captions_score_their_own_words(table):
    teacher = TextTeacher(table)
    vectors = teacher.embed({"caption": ["a small red star moves left", "", "the and of"]})
    assert vectors[1:].abs().sum() == 0
    scores = teacher.scores(vectors)
    assert scores.shape == (3, len(table)) and scores[0].max() == 1 and scores[0].min() == 0
    assert scores[1:].abs().sum() == 0  # nothing is known of a clip without words
    assert named(table, scores[0].topk(1).indices.tolist()) == ["red"]
    own = scores[0, table.text_to_ids("small red star left")]
    assert own.min() > scores[0].median() + 0.2


def test_a_set_is_the_content_words_or_the_weightiest_of_them(table):
    teacher = TextTeacher(table)
    caption = "a small red star moves left and a large blue ring bounces"
    (every,) = teacher.word_sets({"caption": [caption]}, 20)
    assert named(table, every) == ["small", "red", "star", "left", "large", "blue", "ring", "bounces"]
    (some,) = teacher.word_sets({"caption": [caption]}, 3)
    assert len(set(some)) == 3 and set(some) <= set(every)

    def likeness(ids):
        sums = (table.embeddings[ids].sum(0), table.embeddings[every].sum(0))
        return torch.cosine_similarity(*sums, dim=0).item()

    others = [likeness(list(ids)) for ids in itertools.combinations(every, 3)]
    assert likeness(some) > sorted(others)[3 * len(others) // 4]  # of the best quarter of all triples


def test_labels_are_read_without_numbers(table):
    teacher = TextTeacher(table, "label")
    assert teacher.word_sets({"label": ["star/red_12"]}, 5) == [table.text_to_ids("star red")]
    for wrong in ({}, {"label": torch.tensor([1, 2])}, {"label": ["star", None]}):
        with pytest.raises(ValueError, match="expected a label with words for each clip, got"):
            teacher.embed(wrong)


def test_sentences_of_the_table_s_own_model(tmp_path):
    """With the text model a caption is its sentence embedding, and unknown words become the nearest known."""
    folder = made_models.make_bert(tmp_path)
    encoder, table = TextEncoder(folder), build_word_table(folder, dim=5, only=["red", "star", "blue", "left"])
    teacher = TextTeacher(table, encoder=encoder)
    caption = "small red star"
    expected = torch.nn.functional.normalize(table.place(encoder([caption])), dim=-1)
    torch.testing.assert_close(teacher.embed({"caption": [caption]}), expected)
    (ids,) = teacher.word_sets({"caption": [caption]}, 4)
    nearest = torch.cdist(table.place(encoder(["small"])), table.embeddings).argmin().item()
    assert ids == list(dict.fromkeys([*table.text_to_ids("red star"), nearest]))
    with pytest.raises(ValueError, match=r"expected sentence embeddings \(N, 384\)"):
        TextTeacher(WordTable.load(), encoder=encoder)


def test_memory_is_bounded(table, monkeypatch):
    monkeypatch.setattr(text, "_REMEMBERED", 3)
    teacher = TextTeacher(table)
    captions = [f"a {word}" for word in table.words[:9]]
    for caption in captions:
        again = teacher.embed({"caption": [caption, captions[0]]})
        assert len(teacher._vectors) <= 5 and len(teacher._ids) <= 5
    torch.testing.assert_close(again, TextTeacher(table).embed({"caption": [captions[-1], captions[0]]}))


# -------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return made_models.make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def words(clip_folder):
    return build_word_table(clip_folder, dim=8, num_words=40)


def test_clip_scores_are_its_own_cosines(clip_folder, words):
    """Against CLIPModel's own forward, frame by frame."""
    teacher = ClipTeacher(words, clip_folder, frames=2)
    video = torch.rand(2, 3, 2, 16, 16) * 2 - 1
    net, encoder = CLIPModel.from_pretrained(clip_folder).eval(), TextEncoder(clip_folder)
    with torch.no_grad():
        pixels = video.movedim(2, 1).flatten(0, 1)  # mean and deviation of this folder are 0.5: [-1, 1] as it is
        images = net.vision_model(pixel_values=pixels).pooler_output
        images = torch.nn.functional.normalize(net.visual_projection(images), dim=-1).unflatten(0, (2, 2)).mean(1)
    texts = encoder([f"a photo of a {word}" for word in words.words])
    expected = min_max(torch.nn.functional.normalize(images, dim=-1) @ texts.T)
    scores = teacher.scores(teacher.embed({"video": video}))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert scores.amax(dim=1).tolist() == [1, 1] and (scores[0] - scores[1]).abs().max() > 0.01


def test_clip_looks_at_frames_of_any_size_spread_over_the_clip(clip_folder, words):
    teacher = ClipTeacher(words, clip_folder, frames=3)
    video = torch.rand(1, 3, 9, 40, 24) * 2 - 1
    middle = video.clone()
    middle[:, :, [1, 3]] = 0  # neither is looked at: 0, 4, 8 are
    assert torch.equal(teacher.embed({"video": video}), teacher.embed({"video": middle}))
    middle[:, :, 4] = 0
    assert not torch.equal(teacher.embed({"video": video}), teacher.embed({"video": middle}))


def test_clip_names_a_set_without_any_caption(clip_folder, words):
    sets = ClipTeacher(words, clip_folder).word_sets({"video": torch.rand(2, 3, 5, 16, 16) * 2 - 1}, 5)
    assert len(sets) == 2 and all(1 <= len(set(ids)) == len(ids) <= 5 for ids in sets)


def test_a_region_is_scored_by_its_own_pixels(tmp_path):
    """With one block, which patches do not share, a region's vector knows nothing of the others, nor of other times."""
    folder = made_models.make_clip(tmp_path, layers=1)
    teacher = ClipTeacher(build_word_table(folder, dim=8, num_words=20), folder)
    video = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    before = teacher.regions(video, (2, 2, 2))
    assert before.shape == (1, 2, 2, 2, 12)
    torch.testing.assert_close(before.norm(dim=-1), torch.ones(1, 2, 2, 2))
    video[:, :, 3, :8, 8:] = -1  # the second half, top right
    changed = (teacher.regions(video, (2, 2, 2)) - before).abs().amax(dim=-1) > 1e-5
    assert changed.nonzero().tolist() == [[0, 1, 0, 1]]


def test_other_models_are_no_clip(tmp_path, table):
    with pytest.raises(ValueError, match="expected a CLIP model, got a BertModel"):
        ClipTeacher(table, made_models.make_bert(tmp_path))


def test_clip_says_what_it_lacks(clip_folder, words):
    with pytest.raises(ValueError, match="expected a prompt with one {} and frames >= 1, got 'a photo', 4"):
        ClipTeacher(words, clip_folder, prompt="a photo")
    with pytest.raises(ValueError, match=r"expected a batch with video, got \['caption'\]"):
        ClipTeacher(words, clip_folder).embed({"caption": ["red"]})
    assert TextTeacher(WordTable.load()).regions(torch.zeros(1), (1, 1, 1)) is None
