package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/proxy/images"
)

// A claim is what a request is about to do to tags.
type claim struct {
	use  policy.TagUse
	tags []string
	// pulled is true where what comes is the registry's.
	pulled bool
	// whole is the ID of an image that is to go with all of its names, and source that
	// of one that is to get another.
	whole, source string
	// proof tells, when the exchange is over, whether it was this request that gave a
	// tag its image.
	proof func(img *engine.Image, tag string) bool
}

// reserve asks for the claim's names until the function returned is called. Pulls of
// one tag go together, and so do new names of one image.
func (c *claim) reserve(x *exchange) (end func(), err error) {
	own, shared := slices.Clone(c.tags), []string(nil)
	if c.use == policy.PullTag {
		own, shared = nil, own
	}
	if c.whole != "" {
		own = append(own, c.whole)
	}
	if c.source != "" {
		shared = append(shared, c.source)
	}
	return x.srv.Tags.Begin(x.subject.User, own, shared)
}

// claimTags decides whether the subject may use tags so, and reserves them for the
// rest of the exchange: what is decided holds until it is done.
func (x *exchange) claimTags(c *claim) (policy.Verdict, error) {
	c.tags = slices.Compact(slices.Sorted(slices.Values(c.tags)))
	if len(c.tags) > maxTags {
		return policy.Verdict{}, badRequest("the request writes %d tags; %d is the most", len(c.tags), maxTags)
	}
	if c.use != policy.RemoveTag {
		for _, tag := range c.tags {
			if v := policy.ImageName(tag); !v.Allowed() {
				return v, nil
			}
		}
	}
	// Nothing is reserved for what would be refused: nobody keeps others from their
	// tags by asking for them.
	if v, err := x.decideTags(c); err != nil || !v.Allowed() {
		return v, err
	}
	end, err := c.reserve(x)
	var held *images.HeldError
	switch {
	case errors.As(err, &held):
		return policy.Verdict{Rule: "tag-busy", Reason: fmt.Sprintf(
			"Permission denied: this image belongs to %s, who is writing %s at this moment. Use another name or tag.", held.User, strings.Join(c.tags, " or "))}, nil
	case err != nil:
		return policy.Verdict{}, &statusError{http.StatusTooManyRequests, err.Error()}
	}
	v, err := x.decideTags(c)
	if err != nil || !v.Allowed() {
		end()
		return v, err
	}
	x.atEnd(end)
	if c.use != policy.RemoveTag {
		x.rememberTags(c)
	}
	return v, nil
}

// decideTags decides by what the Engine has now.
func (x *exchange) decideTags(c *claim) (policy.Verdict, error) {
	x.images = nil
	all, err := x.allImages()
	if err != nil {
		return policy.Verdict{}, err
	}
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "image-tags"}
	for _, tag := range c.tags {
		v, err := x.useTag(c.use, tag, all)
		if err != nil || !v.Allowed() {
			return v, err
		}
		if v.Outcome == policy.FailOpen {
			verdict = v
		}
	}
	return verdict, nil
}

// rememberTags has the subject remembered, when the exchange is over, as the writer
// of the tags that it gave their images. Who pulls a tag that is there already does
// not become its writer.
func (x *exchange) rememberTags(c *claim) {
	before := make(map[string]string, len(c.tags))
	for _, tag := range c.tags {
		if img := x.images.Tagged(tag); img != nil {
			before[tag] = img.ID
		}
	}
	x.atEnd(func() {
		// The client may be gone by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), lookAfter)
		defer cancel()
		all, err := x.srv.Images.All(ctx)
		if err != nil {
			x.logged("see what became of tags", err)
			return
		}
		var written []string
		for _, tag := range c.tags {
			img := all.Tagged(tag)
			if img == nil || img.ID == before[tag] || c.use == policy.PullTag && before[tag] != "" || !c.proof(img, tag) {
				continue
			}
			written = append(written, tag)
		}
		x.logged("remember who wrote tags", x.srv.Writings.Wrote(x.subject.User, c.pulled, written))
	})
}

// lookAfter bounds the question what became of tags that were to be written.
const lookAfter = 10 * time.Second

// proved reports whether the Engine said, in its answer to this request, that it made
// an image.
func (x *exchange) proved(img *engine.Image, _ string) bool { return slices.Contains(x.made, img.ID) }

// wasMade remembers that this request made an image.
func (x *exchange) wasMade(id string) {
	x.made = append(x.made, id)
	x.logged("remember who made an image", x.srv.Writings.Built(x.subject.User, id))
}
