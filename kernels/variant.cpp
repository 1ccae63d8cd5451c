#include "variant.h"

#include "backward.h"
#include "forward.h"

extern const ScanVariant AVSSEG_VARIANT_NAME = {forward, backward};
