"""Uploading clips in Chromium: which captions are written, and that no request fails. Needs Chromium and its driver."""

from __future__ import annotations

from browser import Browser

from .recorded import Recorded, page


def test_clips_get_a_caption_unless_they_have_one_and_no_request_fails(browser: Browser) -> None:
    recorded = Recorded()
    recorded.inputs = {"dogs 犬": ["old.mp4", "old.txt"]}
    call = """
      const { upload } = await import("/extensions/pack/upload_clips.js");
      const files = args[0].map((name) => new File(["x"], name));
      const told = [];
      return [await upload(files, args[1], "ohwx dog", (done, all) => told.push(`${done}/${all}`) < args[2]), told];
    """
    with page(recorded) as url:
        browser.open(url)
        counts, told = browser.run(call, ["a.mp4", "b.png", "b.txt", "old.mp4"], "dogs 犬", 99)
        assert (counts, told[-1]) == ({"videos": 2, "images": 1}, "4/4")
        assert sorted(recorded.inputs["dogs 犬"]) == ["a.mp4", "a.txt", "b.png", "b.txt", "old.mp4", "old.txt"]
        browser.run(call, ["one.mp4", "two.mp4", "three.mp4"], "birds", 2)
        assert sorted(recorded.inputs["birds"]) == ["one.mp4", "one.txt", "two.mp4", "two.txt"], "a cancelled upload sends no more"
        browser.run(call, ["new.mp4"], "cats", 99)
        assert recorded.inputs["cats"] == ["new.mp4", "new.txt"]
        words = 'const { count, loadWords, say } = await import("/extensions/pack/trainings/words.js"); await loadWords();'
        said = browser.run(f"{words} return [say('upload.chosen', {{ videos: 1, images: 2, texts: 0 }}), count(12345)];")
        assert said == ["1 clip, 2 images, 0 captions", "12\u202f345"], "no line ends within a number"
        lost = """
          const { api } = await import("/scripts/api.js");
          const { upload } = await import("/extensions/pack/upload_clips.js");
          api.fetchApi = () => Promise.reject(new TypeError("Failed to fetch"));
          return await upload([new File(["x"], "dog.mp4")], "dogs", "", () => true).catch((error) => error.message);
        """
        assert browser.run(lost) == "dog.mp4 was not taken: The server did not answer."
    assert recorded.failed == []
