//go:build unsafeack

package intake

// answerBeforeCommit makes every answer a lie, so that `make chaos` can show that it would notice.
const answerBeforeCommit = true
