package proxy

import (
	"encoding/json"
	"net/http"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// noSuchImage is the Engine's own answer, which makes docker run pull.
func noSuchImage(ref string) error {
	return &statusError{http.StatusNotFound, "No such image: " + ref}
}

// imagesShared reports whether everybody sees all images.
func (x *exchange) imagesShared() bool { return x.srv.ImageMode == policy.ImagesShared }

// view gathers what decides who sees an image.
func (x *exchange) view(img *engine.Image, all engine.ImageList) policy.ImageView {
	v := policy.ImageView{Builders: x.builders(img), Pulled: len(img.RepoDigests) > 0}
	for _, name := range img.RepoTags {
		// Without asking who stands on it there is nothing that can fail.
		t, _ := x.tag(name, all, false)
		v.Tags = append(v.Tags, t)
	}
	return v
}

// seesFound reports whether the subject sees an image, and by that name.
func (x *exchange) seesFound(f engine.Found) bool {
	if x.imagesShared() {
		return true
	}
	if f.Tag != "" {
		t, _ := x.tag(f.Tag, x.images, false)
		if !policy.SeesTag(x.subject, t, x.srv.ImageMode) {
			return false
		}
	}
	return policy.SeesImage(x.subject, x.view(f.Image, x.images), x.srv.ImageMode)
}

// readImage guards what reads one image.
func readImage(x *exchange) (policy.Verdict, error) {
	if x.imagesShared() {
		return policy.Pass(), nil
	}
	_, err := x.image(x.vars["name"])
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}, err
}

// pushImage guards the push of one name, or of all names of a repository.
func pushImage(x *exchange) (policy.Verdict, error) {
	if x.imagesShared() {
		return policy.Pass(), nil
	}
	all, err := x.allImages()
	if err != nil {
		return policy.Verdict{}, err
	}
	name := x.vars["name"]
	x.one("tag")
	if tag := x.query.Get("tag"); tag != "" {
		short, err := shortTag(name, tag)
		if err != nil {
			return policy.Verdict{}, err
		}
		_, err = x.image(short)
		return policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}, err
	}
	short, err := shortTag(name, "")
	if err != nil {
		return policy.Verdict{}, err
	}
	repo, _ := splitTag(short)
	for i := range all {
		for _, tag := range all[i].RepoTags {
			if r, _ := splitTag(tag); r == repo && !x.seesFound(engine.Found{Image: &all[i], Tag: tag, Named: true}) {
				return policy.Verdict{}, noSuchImage(tag)
			}
		}
	}
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}, nil
}

// saved checks an image that is to be exported and returns the reference to
// forward: for the Engine, a name without a tag means all tags.
func (x *exchange) saved(name string) (string, error) {
	found, err := x.image(name)
	switch {
	case err != nil:
		return "", err
	case found.Tag != "":
		return engineName(found.Tag), nil
	case found.Named:
		return name, nil
	}
	return found.ID, nil
}

// saveImage guards the export of one image, and saveImages that of several.
func saveImage(x *exchange) (policy.Verdict, error) {
	if x.imagesShared() {
		return policy.Pass(), nil
	}
	name, err := x.saved(x.vars["name"])
	if err == nil {
		x.path = replaceReference(x.path, "/images/", x.vars["name"], name)
	}
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}, err
}

func saveImages(x *exchange) (policy.Verdict, error) {
	if x.imagesShared() {
		return policy.Pass(), nil
	}
	for i, name := range x.query["names"] {
		var err error
		if x.query["names"][i], err = x.saved(name); err != nil {
			return policy.Verdict{}, err
		}
	}
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}, nil
}

// createImages checks the images that a container is to be made of, and writes what
// was found in place of what could come to mean another one.
func (x *exchange) createImages(req *container.CreateRequest) (policy.Verdict, error) {
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}
	if x.imagesShared() {
		return verdict, nil
	}
	refs := []*string{&req.Image}
	if req.HostConfig != nil {
		for i := range req.HostConfig.Mounts {
			if m := &req.HostConfig.Mounts[i]; m.Type == mount.TypeImage {
				refs = append(refs, &m.Source)
			}
		}
	}
	for _, ref := range refs {
		if *ref == "" {
			continue
		}
		found, err := x.image(*ref)
		switch {
		case err != nil:
			return policy.Verdict{}, err
		case found.Tag != "":
			// With its tag, a name cannot be the start of an ID too.
			*ref = engineName(found.Tag)
		case !found.Named:
			*ref = found.ID
		}
	}
	return verdict, nil
}

// listImages checks the images that filters name.
func listImages(x *exchange) (policy.Verdict, error) {
	if x.imagesShared() {
		return policy.Pass(), nil
	}
	args, err := x.filters()
	if err != nil {
		return policy.Verdict{}, err
	}
	for _, key := range []string{"before", "since"} {
		for _, ref := range args.Get(key) {
			found, err := x.image(ref)
			if err != nil {
				return policy.Verdict{}, err
			}
			args.Del(key, ref)
			args.Add(key, found.ID)
		}
	}
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-images"}, x.setFilters(args)
}

// answerHistory leaves out the names that the subject does not see.
func answerHistory(x *exchange, up *upstream, resp *http.Response) error {
	if x.imagesShared() {
		return x.pass(up, resp)
	}
	var layers []map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &layers); err != nil {
		return err
	}
	for _, layer := range layers {
		var tags []string
		if json.Unmarshal(layer["Tags"], &tags) != nil || tags == nil {
			continue
		}
		seen := x.seenTags(tags)
		if len(seen) == 0 {
			seen = nil
		}
		var err error
		if layer["Tags"], err = json.Marshal(seen); err != nil {
			return err
		}
	}
	return x.replyJSON(resp, layers)
}

// seenTags keeps the names that the subject sees.
func (x *exchange) seenTags(tags []string) (seen []string) {
	for _, name := range tags {
		if t, _ := x.tag(name, x.images, false); policy.SeesTag(x.subject, t, x.srv.ImageMode) {
			seen = append(seen, name)
		}
	}
	return seen
}

// answerImages leaves out what others built.
func answerImages(x *exchange, up *upstream, resp *http.Response) error {
	if x.imagesShared() {
		return x.pass(up, resp)
	}
	var list []json.RawMessage
	if _, err := x.readAnswer(resp, &list); err != nil {
		return err
	}
	own, err := x.ownImages(list)
	if err != nil {
		return err
	}
	return x.replyJSON(resp, own)
}

// ownImages keeps the images that the subject sees, each with the names that they
// see.
func (x *exchange) ownImages(list []json.RawMessage) ([]json.RawMessage, error) {
	all, err := x.allImages()
	if err != nil {
		return nil, err
	}
	own := []json.RawMessage{}
	for _, one := range list {
		var fields map[string]json.RawMessage
		// List and inspect agree on these two.
		var img struct {
			ID       string `json:"Id"`
			RepoTags []string
		}
		if err := json.Unmarshal(one, &img); err != nil {
			return nil, err
		}
		found, ok := all.Find(img.ID)
		if !ok || !policy.SeesImage(x.subject, x.view(found.Image, all), x.srv.ImageMode) {
			continue
		}
		tags := x.seenTags(img.RepoTags)
		if len(tags) < len(img.RepoTags) {
			if err := json.Unmarshal(one, &fields); err != nil {
				return nil, err
			}
			if fields["RepoTags"], err = json.Marshal(tags); err != nil {
				return nil, err
			}
			if one, err = json.Marshal(fields); err != nil {
				return nil, err
			}
		}
		own = append(own, one)
	}
	return own, nil
}

// answerImage shows an image with the names that the subject sees.
func answerImage(x *exchange, up *upstream, resp *http.Response) error {
	if x.imagesShared() {
		return x.pass(up, resp)
	}
	var one json.RawMessage
	if _, err := x.readAnswer(resp, &one); err != nil {
		return err
	}
	own, err := x.ownImages([]json.RawMessage{one})
	if err != nil {
		return err
	}
	if len(own) == 0 {
		x.writeError(http.StatusNotFound, noSuchImage(x.vars["name"]).Error())
		return nil
	}
	return x.reply(resp, own[0])
}

// ownImageEvent reports whether the subject sees an event of an image.
func (x *exchange) ownImageEvent(e *eventType) bool {
	owner := policy.OwnerOf(e.Actor.Attributes)
	if owner != "" && owner != x.subject.User {
		return false
	}
	if x.imagesShared() || owner != "" {
		return true
	}
	// The image may be gone, or new.
	x.images = nil
	all, err := x.allImages()
	if err != nil {
		return false
	}
	if tag, err := shortTag(e.Actor.Attributes["name"], ""); err == nil && len(x.seenTags([]string{tag})) == 0 {
		return false
	}
	found, ok := all.Find(e.Actor.ID)
	return ok && x.seesFound(found)
}

// ownDiskImages leaves what the subject does not see out of the disk usage.
func (x *exchange) ownDiskImages(usage map[string]json.RawMessage) error {
	var list []json.RawMessage
	if err := json.Unmarshal(usage["Images"], &list); err != nil {
		return err
	}
	own, err := x.ownImages(list)
	if err != nil {
		return err
	}
	usage["Images"], err = json.Marshal(own)
	return err
}

// countImages counts the images that the subject sees by a name.
func (x *exchange) countImages() (int, error) {
	all, err := x.allImages()
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range all {
		if len(all[i].RepoTags) > 0 && policy.SeesImage(x.subject, x.view(&all[i], all), x.srv.ImageMode) {
			n++
		}
	}
	return n, nil
}
