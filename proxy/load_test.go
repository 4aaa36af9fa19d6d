package proxy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/ds01/ds01-proxy/proxy/audit"
)

// files are the entries of an archive, in order.
type files []tar.Header

// plain is a file; pack finds its text in Linkname.
func plain(name, text string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text)), Linkname: text}
}

func link(kind byte, name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: kind, Linkname: to, Mode: 0o777}
}

// pack writes an archive.
func pack(t *testing.T, entries files) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text, h.Linkname = h.Linkname, ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// manifest is what docker save writes for images of these names.
func manifest(names ...string) string {
	return fmt.Sprintf(`[{"Config":"c.json","RepoTags":["%s"],"Layers":["l/layer.tar"]}]`, strings.Join(names, `","`))
}

// load sends an archive and reports the answer and what the Engine got to the end.
func load(t *testing.T, b *bed, archive []byte) (reply, []arrival) {
	t.Helper()
	b.engine.take()
	b.engine.answer(func(w http.ResponseWriter, _ *http.Request) {
		// The Engine has the image before it answers.
		b.engine.named("new:1")
		fmt.Fprintln(w, `{"stream":"Loaded image: new:1\n"}`)
	})
	got := b.raw(t, fmt.Sprintf("POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n%s", len(archive), archive))
	return got, b.engine.take()
}

// TestLoadDecidesOnEveryName sends archives with bob's name in them, in all places
// and guises, and wants the Engine to get the end of none.
func TestLoadDecidesOnEveryName(t *testing.T) {
	b := newBed(t)
	if err := b.server.Writings.Wrote("bob", false, []string{"taken:1"}); err != nil {
		t.Fatal(err)
	}
	index := func(key, name string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"sha256:%064d","size":1,"annotations":{%q:%q}}]}`, 1, key, name)
	}
	for what, entries := range map[string]files{
		"the manifest":               {plain("c.json", "{}"), plain("manifest.json", manifest("taken:1"))},
		"the second name":            {plain("manifest.json", manifest("new:1", "taken:1"))},
		"a long name":                {plain("manifest.json", manifest("docker.io/library/taken:1"))},
		"the second image":           {plain("manifest.json", `[{"RepoTags":["new:1"]},{"repotags":["taken:1"]}]`)},
		"a folded key":               {plain("manifest.json", `[{"RepoTagſ":["taken:1"]}]`)},
		"a doubled key":              {plain("manifest.json", `[{"RepoTags":["taken:1"],"RepoTags":["taken:1"]}]`)},
		"an unclean path":            {plain("./x/../manifest.json", manifest("taken:1"))},
		"an absolute path":           {plain("/manifest.json", manifest("taken:1"))},
		"repositories":               {plain("repositories", `{"taken":{"1":"0123"}}`)},
		"an index":                   {plain("index.json", index("io.containerd.image.name", "docker.io/library/taken:1"))},
		"an index's reference":       {plain("index.json", index("org.opencontainers.image.ref.name", "taken:1"))},
		"a manifest beside an index": {plain("index.json", index("io.containerd.image.name", "new:1")), plain("manifest.json", manifest("taken:1"))},
	} {
		got, arrived := load(t, b, pack(t, entries))
		if got.status != http.StatusForbidden || !strings.Contains(got.message(), "this image belongs to bob") {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
		for _, a := range arrived {
			r := tar.NewReader(strings.NewReader(a.Body))
			for {
				if _, err := r.Next(); errors.Is(err, io.EOF) && len(a.Body)%512 == 0 && strings.HasSuffix(a.Body, string(make([]byte, 1024))) {
					t.Errorf("%s: the Engine got a whole archive", what)
				} else if err == nil {
					continue
				}
				break
			}
		}
	}
}

// TestLoadRefusesWhatCanBeReadInTwoWays sends archives whose description could be
// another one by the time that the Engine reads it.
func TestLoadRefusesWhatCanBeReadInTwoWays(t *testing.T) {
	b := newBed(t)
	whole := pack(t, files{plain("manifest.json", manifest("new:1"))})
	for what, archive := range map[string][]byte{
		"two manifests":                pack(t, files{plain("manifest.json", manifest("new:1")), plain("manifest.json", manifest("new:2"))}),
		"a link for a manifest":        pack(t, files{plain("m", manifest("taken:1")), link(tar.TypeSymlink, "manifest.json", "m")}),
		"a hard link for it":           pack(t, files{plain("m", manifest("taken:1")), link(tar.TypeLink, "manifest.json", "m")}),
		"a directory behind it":        pack(t, files{link(tar.TypeSymlink, "d", "."), plain("d/manifest.json", manifest("taken:1"))}),
		"a deeper directory":           pack(t, files{link(tar.TypeSymlink, "a/d", ".."), plain("a/d/x/manifest.json", manifest("taken:1"))}),
		"a link to a link":             pack(t, files{link(tar.TypeSymlink, "d", "."), link(tar.TypeLink, "e", "d"), plain("e/manifest.json", manifest("taken:1"))}),
		"a device":                     pack(t, files{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}),
		"a name that is none":          pack(t, files{plain("index.json", `{"manifests":[{"annotations":{"io.containerd.image.name":"UPPER"}}]}`)}),
		"a manifest with a tail":       pack(t, files{plain("manifest.json", manifest("new:1")+`[]`)}),
		"a manifest that is cut":       pack(t, files{plain("manifest.json", `[{"RepoTags":["new`)}),
		"a name that is a gzip header": pack(t, files{{Name: "./\x1f\x8b\x08\x04xyz", Typeflag: tar.TypeReg, Mode: 1 << 40, Format: tar.FormatGNU}, plain("manifest.json", manifest("new:1"))}),
		"a name that is a zstd header": pack(t, files{{Name: "./P*M\x18x\x02", Typeflag: tar.TypeReg}, plain("manifest.json", manifest("new:1"))}),
		"a link to what is no name":    pack(t, files{link(tar.TypeSymlink, "l", "\x1f\x8b")}),
		"a manifest of nothing, often": pack(t, files{plain("manifest.json", "["+strings.Repeat("{},", maxTokens)+"{}]")}),
		"no archive":                   []byte("this is no archive, however long it may be"),
		"half an archive":              whole[:530],
		"xz":                           append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, make([]byte, 600)...),
	} {
		got, arrived := load(t, b, archive)
		if got.status != http.StatusBadRequest || !strings.Contains(got.message(), "the archive cannot be loaded") {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
		for _, a := range arrived {
			if strings.Contains(a.Body, "taken:1") && strings.HasSuffix(a.Body, string(make([]byte, 1024))) {
				t.Errorf("%s: the Engine got the whole archive", what)
			}
		}
	}
}

// TestLoadForwardsArchives wants an archive to arrive with all of its entries,
// whatever it was packed with, and nothing of what follows its end.
func TestLoadForwardsArchives(t *testing.T) {
	b := newBed(t)
	entries := files{
		{Name: "l/", Typeflag: tar.TypeDir, Mode: 0o755}, plain("l/layer.tar", strings.Repeat("layer", 100000)), link(tar.TypeSymlink, "k", "l/layer.tar"),
		plain("manifest.json", manifest("new:1")), plain("repositories", `{"new":{"1":"k"}}`), plain(strings.Repeat("long/", 60)+"name", "x"),
	}
	archive := pack(t, entries)
	var zipped, zstandard bytes.Buffer
	z := gzip.NewWriter(&zipped)
	s, err := zstd.NewWriter(&zstandard)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{z, s} {
		if _, err := w.Write(archive); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, known := b.server.Tags.Writer("new:1"); known {
		t.Fatal("new:1 has a writer before it is there")
	}
	hidden := pack(t, files{plain("manifest.json", manifest("taken:1"))})
	for what, packed := range map[string][]byte{
		"plain": archive, "gzip": zipped.Bytes(), "zstd": zstandard.Bytes(), "with padding": append(bytes.Clone(archive), make([]byte, 10000)...),
		"with another archive behind": append(bytes.Clone(archive), hidden...),
	} {
		got, arrived := load(t, b, packed)
		if got.status != http.StatusOK || len(arrived) != 1 {
			t.Fatalf("%s: %d %s, %d arrived", what, got.status, got.body, len(arrived))
		}
		if bytes.Contains([]byte(arrived[0].Body), []byte("taken:1")) {
			t.Errorf("%s: what follows the end arrived", what)
		}
		r := tar.NewReader(strings.NewReader(arrived[0].Body))
		if h, err := r.Next(); err != nil || h.Name != firstEntry || !strings.HasPrefix(arrived[0].Body, firstEntry) {
			t.Errorf("%s: the archive begins with %v, %v", what, h, err)
		}
		for _, want := range entries {
			h, err := r.Next()
			if err != nil {
				t.Fatalf("%s: before %s: %v", what, want.Name, err)
			}
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatalf("%s: %s: %v", what, want.Name, err)
			}
			if want.Typeflag != tar.TypeReg {
				text = []byte(h.Linkname)
			}
			if h.Name != want.Name || h.Typeflag != want.Typeflag || h.Mode != want.Mode || string(text) != want.Linkname {
				t.Errorf("%s: %s (%d bytes) became %s (%d bytes)", what, want.Name, len(want.Linkname), h.Name, len(text))
			}
		}
	}
	eventually(t, func() bool {
		_, known := b.server.Tags.Writer("new:1")
		return known
	})
	if w, _ := b.server.Tags.Writer("new:1"); w.User != "alice" || w.Pulled {
		t.Errorf("new:1 was written by %v", w)
	}
	eventually(t, func() bool {
		return free(b, "new:1")
	})
}

// TestLoadOverAnUnknownWriterIsRecorded loads over a tag that nobody is known to have
// written: the switch decides, and an allowed one is loud.
func TestLoadOverAnUnknownWriterIsRecorded(t *testing.T) {
	archive := pack(t, files{plain("manifest.json", manifest("taken:1"))})
	b := newBed(t)
	got, _ := load(t, b, archive)
	if rec := b.records.last(t); got.status != http.StatusOK || rec.Verdict != audit.VerdictFailOpen || rec.FailOpen != "unowned-image" {
		t.Errorf("where it is allowed: %d, recorded as %+v", got.status, rec)
	}
	b = newBed(t, withSwitches(Switches{}))
	got, _ = load(t, b, archive)
	if rec := b.records.last(t); got.status != http.StatusForbidden || rec.Verdict != audit.VerdictDeny {
		t.Errorf("where it is denied: %d, recorded as %+v", got.status, rec)
	}
}

// TestAWrittenTagIsReserved lets a load hang in the middle: its name is nobody
// else's until it is over.
func TestAWrittenTagIsReserved(t *testing.T) {
	b := newBed(t)
	archive := pack(t, files{plain("manifest.json", manifest("held:1")), plain("l", strings.Repeat("x", 1<<20))})
	c := b.dial(t, "alice")
	if _, err := fmt.Fprintf(c, "POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n%s", len(archive), archive[:100000]); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		return !free(b, "held:1")
	})
	c.Close()
	eventually(t, func() bool {
		return free(b, "held:1")
	})
}

// free reports whether bob could write a tag now.
func free(b *bed, tag string) bool {
	end, err := b.server.Tags.Begin("bob", []string{tag}, nil)
	if err == nil {
		end()
	}
	return err == nil
}

// eventually polls until ok is true or a deadline passes.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to pass")
		}
	}
}
