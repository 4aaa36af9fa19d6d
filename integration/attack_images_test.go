package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
)

// imageAttacks move, overwrite and remove the tag of an image of bob's.
func imageAttacks() []attack {
	const text = "this image belongs to bob"
	moves := func(row, name, target, body string) attack {
		return attack{row: row, name: name, target: target, body: body, header: []string{"Content-Type", "application/x-tar"}, says: text, worked: differs("tag")}
	}
	tags := func(name, target string) attack {
		return moves("POST /images/{}/tag", name, target, "")
	}
	archive := tarOf("f", "alice's")
	build := tarOf("Dockerfile", "FROM busybox:local\nENV of=alice\n")
	return []attack{
		tags("", "/images/busybox:local/tag?repo=atk-image&tag=1"),
		tags("in one word", "/images/busybox:local/tag?repo=atk-image:1"),
		tags("in full", "/images/busybox:local/tag?repo=docker.io/library/atk-image&tag=1"),
		tags("by the index", "/images/busybox:local/tag?repo=index.docker.io/atk-image:1"),
		tags("twice", "/images/busybox:local/tag?repo=atk-image&repo=atk-other&tag=1&tag=2"),
		tags("with a tag over a tag", "/images/busybox:local/tag?repo=atk-image:2&tag=1"),
		tags("encoded", "/images/busybox%3alocal/tag?repo=atk%2dimage&tag=%31"),
		tags("as before API 1.24", "/images/busybox:local/tag?repo=atk-image&tag=1&force=1"),

		{row: "DELETE /images/{}", ref: "tag", target: "/images/_REF_", says: text, worked: differs("tag")},
		{row: "DELETE /images/{}", ref: "tag", name: "by force", target: "/images/_REF_?force=1", says: text, worked: gone("tag")},
		{row: "DELETE /images/{}", ref: "tag", name: "without pruning", target: "/images/_REF_?force=true&noprune=1", says: text, worked: gone("tag")},
		{row: "DELETE /images/{}", name: "in full", target: "/images/docker.io/library/atk-image:1?force=1", says: text, worked: gone("tag")},
		{row: "DELETE /images/{}", name: "one without a name", target: "/images/_IMAGE_?force=1", says: text, worked: gone("image")},

		moves("POST /commit", "onto bob's tag", "/commit?container=_OWN_&repo=atk-image&tag=1", "").with(func(a *attack) { a.header = nil }),
		moves("POST /commit", "onto bob's tag, in one word", "/commit?container=_OWN_&repo=docker.io/library/atk-image&tag=1&repo=x", "").with(func(a *attack) { a.header = nil }),
		moves("POST /build", "onto bob's tag", "/build?t=atk-image:1", build),
		moves("POST /build", "onto bob's tag, among others", "/build?t=atk-more:1&t=docker.io/library/atk-image:1", build),
		moves("POST /images/create", "an import onto bob's tag", "/images/create?fromSrc=-&repo=atk-image&tag=1", archive),
		moves("POST /images/create", "an import onto bob's tag, in one word", "/images/create?fromSrc=-&repo=atk-image:1", archive),
		moves("POST /images/load", "", "/images/load", "").with(func(a *attack) { a.send = loadedAs("atk-image:1") }),
		moves("POST /images/load", "in full", "/images/load?quiet=1", "").with(func(a *attack) { a.send = loadedAs("docker.io/library/atk-image:1") }),
		moves("POST /images/load", "among others", "/images/load", "").with(func(a *attack) { a.send = loadedAs(`atk-more:1","atk-image:1`) }),
	}
}

// loadedAs sends what the Engine saves of busybox:local, under another name.
func loadedAs(name string) func(w *world, socket, target, body string) answer {
	return func(w *world, socket, target, _ string) answer {
		w.t.Helper()
		var out bytes.Buffer
		archive := tar.NewWriter(&out)
		saved := tar.NewReader(strings.NewReader(w.raw("GET", "/images/busybox:local/get", "").body))
		for {
			h, err := saved.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				w.t.Fatal(err)
			}
			text, err := io.ReadAll(saved)
			if err != nil {
				w.t.Fatal(err)
			}
			if h.Name == "manifest.json" {
				text = bytes.Replace(text, []byte("busybox:local"), []byte(name), 1)
				h.Size = int64(len(text))
			}
			if h.Name == "repositories" {
				continue
			}
			if err := errors.Join(archive.WriteHeader(h), write(archive, text)); err != nil {
				w.t.Fatal(err)
			}
		}
		if err := archive.Close(); err != nil {
			w.t.Fatal(err)
		}
		return ask(w.t, socket, http.MethodPost, target, out.String(), "Content-Type", "application/x-tar")
	}
}

func write(w io.Writer, text []byte) error {
	_, err := w.Write(text)
	return err
}
