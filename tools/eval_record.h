// tools/eval_record.h — records what full attention over a document sees.
#pragma once

#include "tools/eval_document.h"
#include "tools/recorded_keys.h"
#include "tools/session.h"

namespace icefield {

// The K/V of the document and the queries of the steps that matter: the last token of every prompt
// of its questions, the answer tokens that are fed, the first tokens of its continuation. All are
// computed with full attention. `progress` gets 0 … 1.
Result<RecordedKeys> record_document(Session& session, const EvalDocument& document,
                                     const std::function<void(double)>& progress);

}  // namespace icefield
