package proxy

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// A progress is a line of the stream in which the Engine says what it does.
type progress struct {
	Stream, Status string
	Aux            struct{ ID string }
}

// knowImages remembers which images there are before a request that may say of one
// that was there that it made it.
func (x *exchange) knowImages() error {
	all, err := x.srv.Images.All(x.r.Context())
	if err != nil {
		return err
	}
	x.before = make(map[string]bool, len(all))
	for i := range all {
		x.before[all[i].ID] = true
	}
	return nil
}

// answerLoaded remembers which names an archive's images got, and whose the images
// are that were not there before.
func answerLoaded(x *exchange, up *upstream, resp *http.Response) error {
	err := x.follow(up, resp, func(p *progress) {
		for line := range strings.Lines(p.Stream) {
			line = strings.TrimSpace(line)
			if id, ok := strings.CutPrefix(line, "Loaded image ID: "); ok && isImageID(id) && !x.before[id] {
				x.wasMade(id)
			} else if name, ok := strings.CutPrefix(line, "Loaded image: "); ok {
				if tag, err := shortTag(name, ""); err == nil {
					x.loaded = append(x.loaded, tag)
				}
			}
		}
	})
	if len(x.loaded) == 0 {
		return err
	}
	all, listErr := x.srv.Images.All(x.r.Context())
	x.logged("see what was loaded", listErr)
	for _, tag := range x.loaded {
		if img := all.Tagged(tag); img != nil && !x.before[img.ID] {
			x.wasMade(img.ID)
		}
	}
	return err
}

// answerImported remembers who imported an image.
func answerImported(x *exchange, up *upstream, resp *http.Response) error {
	if x.query.Get("fromImage") != "" {
		return x.pass(up, resp)
	}
	return x.follow(up, resp, func(p *progress) {
		if isImageID(p.Status) {
			x.wasMade(p.Status)
		}
	})
}

// answerBuilt remembers who built an image. Where the build is quiet, its only words
// are the ID; where it is not, anything may stand in the steps' words, and the ID
// comes beside them.
func answerBuilt(x *exchange, up *upstream, resp *http.Response) error {
	quiet := isTrue(x.query.Get("q"))
	return x.follow(up, resp, func(p *progress) {
		if id := strings.TrimSpace(p.Stream); quiet && isImageID(id) {
			x.wasMade(id)
		} else if isImageID(p.Aux.ID) {
			x.wasMade(p.Aux.ID)
		}
	})
}

// answerCommitted remembers who committed an image.
func answerCommitted(x *exchange, _ *upstream, resp *http.Response) error {
	var made container.CommitResponse
	return x.replayJSON(resp, &made, func() {
		if isImageID(made.ID) {
			x.wasMade(made.ID)
		}
	})
}

// isImageID reports whether a text is an image's full ID.
func isImageID(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == 64 && strings.Trim(digits, "0123456789abcdef") == ""
}

// follow passes an answer on and reads along.
func (x *exchange) follow(up *upstream, resp *http.Response, see func(*progress)) error {
	resp.Body = &follower{ReadCloser: resp.Body, see: see}
	return x.pass(up, resp)
}

// maxMessage is the longest line of a progress stream, in bytes, that is looked at.
const maxMessage = 16 << 10

// A follower reads along with a progress stream.
type follower struct {
	io.ReadCloser
	see  func(*progress)
	line []byte
	long bool
}

func (f *follower) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	for _, c := range p[:n] {
		switch {
		case c == '\n':
			f.look()
		case len(f.line) == maxMessage:
			f.long = true
		default:
			f.line = append(f.line, c)
		}
	}
	if err != nil {
		f.look()
	}
	return n, err
}

// look looks at one line.
func (f *follower) look() {
	var p progress
	if !f.long && json.Unmarshal(f.line, &p) == nil {
		f.see(&p)
	}
	f.line, f.long = f.line[:0], false
}
